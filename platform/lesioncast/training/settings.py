"""Settings of the training of one stage."""

import math
from dataclasses import dataclass

from lesioncast.diffusion.settings.process import Precision

# Settings of where and how a stage runs. All others shape its weights and may not change midway.
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
DROPOUT_FIELDS = (
    "arm_dropout",
    "condition_dropout",
    "channel_dropout",
    "session_dropout",
    "covariate_dropout",
)


@dataclass(frozen=True)
class DropoutRates:
    """Rates at which a training case loses parts of its condition."""

    arm: float = 0.0
    condition: float = 0.0
    channel: float = 0.0
    session: float = 0.0
    covariate: float = 0.0


@dataclass(frozen=True)
class TrainSettings:
    """Optimisation of one stage, and the workers it runs on."""

    #: Optimiser steps.
    steps: int
    #: Cases of one step, over all workers.
    batch_size: int = 16
    #: Largest learning rate. It is reached after the warm-up and decays to 0 as a cosine.
    learning_rate: float = 1e-4
    #: Factor on the learning rate of the voxel perceptrons, whose few weights all voxels share.
    voxel_rate: float = 1.0
    #: Steps of linear warm-up.
    warmup: int = 1000
    #: Decay of the moving average of the weights, once the average has warmed up.
    ema: float = 0.9999
    #: Largest norm of the gradient.
    gradient_clip: float = 1.0
    #: Rate at which a case loses its arm.
    arm_dropout: float = 0.1
    #: Rate at which a case loses all images of its condition.
    condition_dropout: float = 0.0
    #: Rate at which a case loses each single channel, and each single covariate.
    channel_dropout: float = 0.0
    #: Rate at which a case loses all images after baseline. Above 0, the model can also forecast
    #: from baseline images alone (paper, section 4.4).
    session_dropout: float = 0.0
    #: Rate at which a case loses all covariates.
    covariate_dropout: float = 0.0
    #: Take as many inactive as active cases in each epoch.
    balanced: bool = False
    #: Weight of FLAIR in the loss of this stage, in place of the objective's; 0 trains NET2 alone.
    flair_weight: float | None = None
    #: Precision of matrix products and convolutions. Weights stay in float32.
    precision: Precision = "float32"
    #: Training processes; 0 trains in the calling process.
    workers: int = 2
    #: Smallest number of workers to go on with while the cluster has no room for all of them. The
    #: run takes the others on again once it has.
    min_workers: int | None = None
    #: CPU threads per worker.
    cpus_per_worker: int = 1
    #: GPU type, such as A100. Each worker gets one GPU of this type.
    accelerator_type: str | None = None
    #: Steps between checkpoints.
    checkpoint_every: int = 1000
    #: Steps between log lines.
    log_every: int = 50
    #: Checkpoints that stay on disk.
    keep_checkpoints: int = 2
    #: Restarts from the last checkpoint after lost workers, and as many after a lost controller of
    #: Ray Train. Nodes that are preempted with notice do not count.
    max_failures: int = 0
    #: Largest size of the node cache. Cases that need more, or more than a node has room for, are
    #: read from the store at every step.
    cache_gib: float = math.inf

    @property
    def dropout_rates(self) -> DropoutRates:
        """Return the dropout rates."""
        return DropoutRates(*(getattr(self, name) for name in DROPOUT_FIELDS))

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
        for name in ("learning_rate", "voxel_rate", "gradient_clip"):
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("ema", *DROPOUT_FIELDS):
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
