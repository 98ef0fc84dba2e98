"""What the forecast and the evaluation may be told by config."""

from dataclasses import dataclass


def _at_least(least: int, **values: float) -> None:
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
    opening: bool = False
    slices: int = 2
    sessions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least(2, samples=self.samples)
        _at_least(1, subjects=self.subjects, batch_size=self.batch_size, workers=self.workers)
        _at_least(1, slices=self.slices)
        _at_least(0, gpus_per_worker=self.gpus_per_worker)


@dataclass(frozen=True)
class EvaluationSettings:
    """The evaluation on the test split: `samples` draws a case on its own arm.

    `subjects` of its cases are tested (0: all of them), `counterfactual_subjects` are drawn under
    every arm. `validation_subjects` of the validation split (all of them when none is said) are
    drawn too, on their own arms, and calibrate the forecast; 0 leaves that out. `covariates` are
    columns of participants.tsv, known by w048, that one more regression sees beside the image
    scalars. `bootstrap` resamples give the 95 % intervals; the Monte Carlo baseline is the mean of
    `monte_carlo_runs` (paper, table 3). `batch_size`, `workers` and `gpus_per_worker` as in
    `ForecastSettings`.
    """

    samples: int = 16
    subjects: int = 0
    counterfactual_subjects: int = 60
    validation_subjects: int | None = None
    covariates: tuple[str, ...] = ()
    bootstrap: int = 1000
    monte_carlo_runs: int = 100
    batch_size: int = 32
    workers: int = 2
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        _at_least(2, samples=self.samples)
        _at_least(100, bootstrap=self.bootstrap)
        _at_least(1, monte_carlo_runs=self.monte_carlo_runs, batch_size=self.batch_size)
        _at_least(1, workers=self.workers)
        _at_least(0, subjects=self.subjects)
        _at_least(0, counterfactual_subjects=self.counterfactual_subjects)
        _at_least(0, validation_subjects=self.validation_subjects or 0)
        _at_least(0, gpus_per_worker=self.gpus_per_worker)
