"""One stage from the driver: prepare the nodes, run the workers, come back with a checkpoint."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

# The public names below ray.train are these, but mypy takes them for those of version 1.
from ray.exceptions import RayActorError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from lesioncast.cluster.ray_internals import PlacementGroupCleanerCallback
from lesioncast.errors import TrainingError
from lesioncast.training.checkpoint import Checkpoint, latest_valid, require_same_run
from lesioncast.training.data.node_cache import fill, read_in_process, release
from lesioncast.training.data.node_caches import prepare_nodes, release_nodes
from lesioncast.training.experiment import Stage
from lesioncast.training.loop import train_loop_per_worker
from lesioncast.training.settings import TrainSettings

logger = logging.getLogger(__name__)

RESIZE_INTERVAL_S = 20.0  # how often a run that lacks workers looks for room for them


def train(stage: Stage) -> Checkpoint:
    """The stage's last checkpoint; what is missing is trained, a finished run is left as it is.

    Raises ChangedSettingsError where the run was begun with other settings, TrainingError where the
    workers end without the last checkpoint.
    """
    last = latest_valid(stage.folder)
    if last is not None:
        require_same_run(last, stage.identity)
        if last.step == stage.settings.steps:
            logger.info(
                "%s: finished already, at step %d (%s); --fresh trains it again",
                stage.name,
                last.step,
                last.folder,
            )
            return last
    run_workers(stage)
    return final_checkpoint(stage)


def final_checkpoint(stage: Stage) -> Checkpoint:
    """The checkpoint after the last step. Raises TrainingError where there is none yet."""
    last = latest_valid(stage.folder)
    if last is not None and last.step == stage.settings.steps:
        return last
    raise TrainingError(
        f"{stage.folder}: expected a checkpoint at step {stage.settings.steps}, got none; "
        f"run jobs/{stage.name}.py first"
    )


def discard(stage: Stage) -> None:
    """Remove the run with its checkpoints and log, to start over."""
    if stage.folder.exists():
        shutil.rmtree(stage.folder)


def run_workers(stage: Stage) -> None:
    """Train on Ray, or in this process where `workers` is 0.

    Ray Train starts lost workers again by itself. Its controller it does not: another one finds the
    last checkpoint by the name of the run.
    """
    # Two seconds by default: a report would wait that long for the controller to look.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    with filled_node_caches(stage):
        for left in reversed(range(stage.settings.max_failures + 1)):
            try:
                trainer(stage).fit()
                return
            except TrainingFailedError as error:
                raise root_cause(error, stage) from error
            except RayActorError as error:
                why = str(error).splitlines()[0]
                logger.warning("%s: lost Ray Train's controller (%s)", stage.name, why)
                if not left:
                    raise TrainingError(
                        f"{stage.name}: expected Ray Train's controller to live, got {why}; "
                        "run the same command again: it resumes from the last checkpoint"
                    ) from error


def trainer(stage: Stage) -> TorchTrainer:
    """Ray Train's driver of the stage; checkpoints are the loop's own, see `checkpoint`."""
    settings = stage.settings
    return trainer_class()(
        train_loop_per_worker,
        train_loop_config={"stage": stage},
        scaling_config=scaling(settings),
        run_config=RunConfig(
            name=stage.name,
            storage_path=str(stage.experiment.runs / ".ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


@contextmanager
def filled_node_caches(stage: Stage) -> Iterator[None]:
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


class LocalClusterTrainer(TorchTrainer):
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
    return LocalClusterTrainer


def root_cause(error: TrainingFailedError, stage: Stage) -> TrainingError:
    """What stopped the run: our own error where one worker raised it, since the others may only
    have lost their connection to it."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    own = [failure for failure in failures if isinstance(failure, TrainingError)]
    return own[0] if own else TrainingError(f"{stage.name} stopped: {[*failures, error][0]!r}")


def scaling(settings: TrainSettings) -> ScalingConfig:
    """One worker per GPU of the wanted type, or workers on CPUs alone."""
    workers, fewest = settings.workers, settings.min_workers
    return ScalingConfig(
        num_workers=workers if fewest is None else (fewest, workers),
        use_gpu=settings.accelerator_type is not None,
        accelerator_type=settings.accelerator_type,
        resources_per_worker={"CPU": settings.cpus_per_worker},
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )
