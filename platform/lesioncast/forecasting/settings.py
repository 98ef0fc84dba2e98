"""Settings of a forecast."""

from dataclasses import dataclass


def require_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


@dataclass(frozen=True)
class ForecastSettings:
    """One forecast: `samples` draws an arm, for `subjects` of the test split when none is named.

    `batch_size` draws share forward passes on each of `workers` Ray actors, every one of which
    holds the model (`gpus_per_worker` 0 runs it on one CPU thread). `reference_arm` is what the
    paired differences are taken against. `opening` applies the paper's 5 mm opening before lesions
    are counted; both counts are written in any case. `slices` is what the figure shows. `sessions`
    are those whose images the model is shown, all that it knows where none is named: w000 alone
    asks what each arm would have done from the start.
    """

    samples: int = 32
    subjects: int = 4
    batch_size: int = 16
    workers: int = 2
    gpus_per_worker: float = 0.0
    reference_arm: str = "placebo"
    apply_opening: bool = False
    slices: int = 2
    sessions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(2, samples=self.samples)
        require_at_least(
            1, subjects=self.subjects, batch_size=self.batch_size, workers=self.workers
        )
        require_at_least(1, slices=self.slices)
        require_at_least(0, gpus_per_worker=self.gpus_per_worker)
