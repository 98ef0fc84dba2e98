"""Settings of the evaluation."""

from dataclasses import dataclass

from lesioncast.forecasting.settings import require_at_least


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of the evaluation on the test split."""

    #: Samples a case under each arm.
    samples: int = 16
    #: Test cases to evaluate, evenly over the split; 0 is all of them.
    subjects: int = 0
    #: Test cases to sample under every arm. A model with a lesion-load prior needs no samples for
    #: that: its expected outcomes cover all test cases.
    counterfactual_subjects: int = 60
    #: Validation cases that calibrate the forecast; None is all of them, 0 leaves calibration out.
    #: They are sampled only where the bundle states no count in closed form.
    validation_subjects: int | None = None
    #: Columns of participants.tsv, known by the current session, for one more regression baseline.
    covariates: tuple[str, ...] = ()
    #: Bootstrap resamples of the cases behind each 95 % interval.
    bootstrap: int = 1000
    #: Runs of the random Monte Carlo baseline, whose scores are averaged (paper, table 3).
    monte_carlo_runs: int = 100
    #: Samples that a worker draws together.
    batch_size: int = 32
    #: Ray workers that measure and sample cases.
    workers: int = 2
    #: GPUs a worker reserves; 0 samples on the CPU.
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        """Raise ConfigError where a field is out of range."""
        require_at_least(2, samples=self.samples)
        require_at_least(100, bootstrap=self.bootstrap)
        require_at_least(1, monte_carlo_runs=self.monte_carlo_runs, batch_size=self.batch_size)
        require_at_least(1, workers=self.workers)
        require_at_least(0, subjects=self.subjects)
        require_at_least(0, counterfactual_subjects=self.counterfactual_subjects)
        require_at_least(0, validation_subjects=self.validation_subjects or 0)
        require_at_least(0, gpus_per_worker=self.gpus_per_worker)
