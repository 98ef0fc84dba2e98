"""What the forecast and the evaluation may be told by config."""

from dataclasses import dataclass

from lesioncast.forecasting.settings import require_at_least


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
        require_at_least(2, samples=self.samples)
        require_at_least(100, bootstrap=self.bootstrap)
        require_at_least(1, monte_carlo_runs=self.monte_carlo_runs, batch_size=self.batch_size)
        require_at_least(1, workers=self.workers)
        require_at_least(0, subjects=self.subjects)
        require_at_least(0, counterfactual_subjects=self.counterfactual_subjects)
        require_at_least(0, validation_subjects=self.validation_subjects or 0)
        require_at_least(0, gpus_per_worker=self.gpus_per_worker)
