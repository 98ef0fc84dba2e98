"""Settings of the forecast job."""

from dataclasses import dataclass


def require_at_least(least: int, **values: float) -> None:
    """Raise ValueError for the first of the named values that is below `least`."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


@dataclass(frozen=True)
class ForecastSettings:
    """Settings of a forecast."""

    #: Number of samples an arm.
    samples: int = 32
    #: Number of subjects of the test split to forecast if none is named.
    subjects: int = 4
    #: Number of samples that share a forward pass.
    batch_size: int = 16
    #: Number of Ray actors, each of which holds the model.
    workers: int = 2
    #: GPUs of each actor; 0 runs the model on one CPU thread.
    gpus_per_worker: float = 0.0
    #: Arm that the paired differences are taken against.
    reference_arm: str = "placebo"
    #: Apply the paper's 5 mm opening before lesions are counted; both counts are always written.
    apply_opening: bool = False
    #: Number of slices in the figure.
    slices: int = 2
    #: Sessions whose images the model sees; empty for all. Baseline alone forecasts each arm from
    #: the start of treatment.
    sessions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least(2, samples=self.samples)
        require_at_least(
            1, subjects=self.subjects, batch_size=self.batch_size, workers=self.workers
        )
        require_at_least(1, slices=self.slices)
        require_at_least(0, gpus_per_worker=self.gpus_per_worker)
