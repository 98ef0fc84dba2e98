"""One stage from the driver: prepare the nodes, run the workers, come back with a checkpoint."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

# The public names below ray.train are these, but mypy takes them for those of version 1.
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from lesioncast.training.checkpoint import Checkpoint, checkpoints, require_same_run
from lesioncast.training.errors import TrainingError
from lesioncast.training.ingest import fill, read_in_process, release
from lesioncast.training.loop import train_loop_per_worker
from lesioncast.training.nodes import prepare_nodes, release_nodes
from lesioncast.training.settings import TrainSettings
from lesioncast.training.stages import Stage

logger = logging.getLogger(__name__)


def train(stage: Stage) -> Checkpoint:
    """The stage's last checkpoint; what is missing is trained, a finished run is left as it is.

    Raises ChangedSettingsError where the run was begun with other settings, TrainingError where the
    workers end without the last checkpoint.
    """
    for checkpoint in checkpoints(stage.folder)[-1:]:
        require_same_run(checkpoint, stage.identity)
        if checkpoint.step == stage.settings.steps:
            logger.info(
                "%s: finished already, at step %d (%s); --fresh trains it again",
                stage.name,
                checkpoint.step,
                checkpoint.folder,
            )
            return checkpoint
    run_workers(stage)
    return finished(stage)


def finished(stage: Stage) -> Checkpoint:
    """The checkpoint after the last step. Raises TrainingError where there is none yet."""
    for checkpoint in checkpoints(stage.folder)[-1:]:
        if checkpoint.step == stage.settings.steps:
            return checkpoint
    raise TrainingError(
        f"{stage.folder}: expected a checkpoint at step {stage.settings.steps}, got none; "
        f"run jobs/{stage.name}.py first"
    )


def discard(stage: Stage) -> None:
    """Remove the run with its checkpoints and log, to start over."""
    if stage.folder.exists():
        shutil.rmtree(stage.folder)


def run_workers(stage: Stage) -> None:
    """Train on Ray, or in this process where `workers` is 0."""
    settings = stage.settings
    # Two seconds by default: a report would wait that long for the controller to look.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    trainer = trainer_class()(
        train_loop_per_worker,
        train_loop_config={"stage": stage},
        scaling_config=scaling(settings),
        run_config=RunConfig(
            name=stage.name,
            storage_path=str(stage.experiment.runs),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        with cases_at_hand(stage):
            trainer.fit()
    except TrainingFailedError as error:
        raise root_cause(error, stage) from error


@contextmanager
def cases_at_hand(stage: Stage) -> Iterator[None]:
    """Every node has the cases, if there is room for them, as long as the block lasts."""
    cases, accelerator = stage.cases, stage.settings.accelerator_type
    if stage.settings.workers == 0:
        logger.info("%s: %s", stage.name, fill(cases, read_in_process).remark)
        try:
            yield
        finally:
            release(cases)
        return
    prepare_nodes(cases, accelerator_type=accelerator)
    try:
        yield
    finally:
        release_nodes(cases, accelerator_type=accelerator)


class OwnClusterTrainer(TorchTrainer):
    """Without the actor that clears up after a dead controller, for a cluster that ends with us.

    It asks the dashboard every second whether the controller lives, and warns where there is none.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks: list[RayTrainCallback] = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


def trainer_class() -> type[TorchTrainer]:
    """Ray Train's own on a cluster that RAY_ADDRESS names, whose nodes may be preempted."""
    if os.environ.get("RAY_ADDRESS"):
        return TorchTrainer
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return OwnClusterTrainer


def root_cause(error: TrainingFailedError, stage: Stage) -> TrainingError:
    """What stopped the run: our own error where one worker raised it, since the others may only
    have lost their connection to it."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    own = [failure for failure in failures if isinstance(failure, TrainingError)]
    return own[0] if own else TrainingError(f"{stage.name} stopped: {[*failures, error][0]!r}")


def scaling(settings: TrainSettings) -> ScalingConfig:
    """One worker per GPU of the wanted type, or workers on CPUs alone."""
    return ScalingConfig(
        num_workers=settings.workers,
        use_gpu=settings.accelerator_type is not None,
        accelerator_type=settings.accelerator_type,
        resources_per_worker={"CPU": settings.threads},
    )
