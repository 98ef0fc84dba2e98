"""How one stage is trained."""

import math
from dataclasses import dataclass

from lesioncast.diffusion.precision import Precision

# These say where and how a stage runs; all others shape its weights and may not change midway.
NON_IDENTITY_FIELDS = (
    "workers",
    "min_workers",
    "cpus_per_worker",
    "accelerator_type",
    "checkpoint_every",
    "log_every",
    "keep_checkpoints",
    "max_failures",
    "cache_gib",
)
DROPOUT_RATES = (
    "arm_dropout",
    "condition_dropout",
    "channel_dropout",
    "session_dropout",
    "covariate_dropout",
)


@dataclass(frozen=True)
class TrainSettings:
    """One stage's optimisation, and the workers it runs on.

    `batch_size` counts the cases of one step over all workers. `warmup` steps of linear rise to
    `learning_rate` precede a cosine to zero. `ema` is the decay of the averaged weights once warm.
    `arm_dropout`, `condition_dropout` and `covariate_dropout` are the rates at which a case loses
    its arm, all of its condition, and all of its covariates; `channel_dropout` that of each
    condition channel and each covariate on its own; `session_dropout` that of all images later than
    w000: with it, one model also answers from w000 alone (paper, section 4.4). `balanced` takes as
    many inactive as active cases each epoch. `flair_weight`, where given, replaces the objective's
    for this stage: 0 trains NET2 alone.

    `workers` 0 trains in the calling process. With `min_workers` a run goes on with so many where
    the cluster has no room for all, and takes them on again when it has. `threads` are CPUs per
    worker; with an `accelerator_type` such as A100 each worker also gets one such GPU. `keep`
    checkpoints stay on disk. `max_failures` restarts from the last checkpoint follow lost workers,
    as many a lost controller of Ray Train; nodes that are taken away with notice count for none.
    Cases that take more than `cache_gib`, or than a node has room for, are read from the store at
    every step.
    """

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup: int = 1000
    ema: float = 0.9999
    gradient_clip: float = 1.0
    arm_dropout: float = 0.1
    condition_dropout: float = 0.0
    channel_dropout: float = 0.0
    session_dropout: float = 0.0
    covariate_dropout: float = 0.0
    balanced: bool = False
    flair_weight: float | None = None
    precision: Precision = "float32"
    workers: int = 2
    min_workers: int | None = None
    cpus_per_worker: int = 1
    accelerator_type: str | None = None
    checkpoint_every: int = 1000
    log_every: int = 50
    keep_checkpoints: int = 2
    max_failures: int = 0
    cache_gib: float = math.inf

    @property
    def dropout_rates(self) -> dict[str, float]:
        """The rates by name."""
        return {name: getattr(self, name) for name in DROPOUT_RATES}

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "cpus_per_worker",
            "checkpoint_every",
            "log_every",
            "keep_checkpoints",
        ):
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        for name in ("warmup", "workers", "max_failures", "cache_gib"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("learning_rate", "gradient_clip"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("ema", *DROPOUT_RATES):
            _require(0 <= getattr(self, name) < 1, name, "from 0 to below 1", getattr(self, name))
        _require(
            self.workers <= self.batch_size,
            "workers",
            f"at most one per case of a batch ({self.batch_size})",
            self.workers,
        )
        _require(
            self.min_workers is None or 1 <= self.min_workers <= self.workers,
            "min_workers",
            f"from 1 to workers ({self.workers})",
            self.min_workers,
        )
        _require(
            self.precision in ("float32", "bfloat16"),
            "precision",
            "float32 or bfloat16",
            self.precision,
        )


def _require(holds: bool, name: str, expected: str, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")
