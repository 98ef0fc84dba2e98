"""Train one stage from the driver: fill the node caches, run the workers, return a checkpoint."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

# ray.train exports these classes too, but mypy takes those names for the classes of version 1.
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

RESIZE_INTERVAL_S = 20.0  # between checks whether the cluster has room for missing workers


def train(stage: Stage) -> Checkpoint:
    """Train the stage from its newest checkpoint and return its last checkpoint.

    A finished run is not trained again. Raise ChangedSettingsError if the run was begun with other
    settings, and TrainingError if the workers end without the last checkpoint.
    """
    last = latest_valid(stage.folder)
    if last is not None:
        require_same_run(last, stage.identity)
        if last.step == stage.settings.steps:
            logger.info(
                "%s: finished already at step %d (%s); run with --fresh to train it again",
                stage.name,
                last.step,
                last.folder,
            )
            return last
    run_workers(stage)
    return final_checkpoint(stage)


def final_checkpoint(stage: Stage) -> Checkpoint:
    """Return the checkpoint of the last step. Raise TrainingError if there is none yet."""
    last = latest_valid(stage.folder)
    if last is not None and last.step == stage.settings.steps:
        return last
    raise TrainingError(
        f"{stage.folder}: expected a checkpoint at step {stage.settings.steps}, got none; "
        f"run jobs/{stage.name}.py first"
    )


def discard(stage: Stage) -> None:
    """Remove the run with its checkpoints and metrics, to start over."""
    if stage.folder.exists():
        shutil.rmtree(stage.folder)


def run_workers(stage: Stage) -> None:
    """Train on Ray, or in this process if `workers` is 0. Raise TrainingError on failure."""
    # The controller polls the workers at this interval, and a report waits until it does. The
    # default is two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray Train restarts lost workers itself, but not its own controller. A new controller finds the
    # last checkpoint by the name of the run.
    with filled_node_caches(stage):
        for attempts_left in reversed(range(stage.settings.max_failures + 1)):
            try:
                trainer(stage).fit()
                return
            except TrainingFailedError as error:
                raise root_cause(error, stage) from error
            except RayActorError as error:
                reason = str(error).splitlines()[0]
                logger.warning("%s: lost Ray Train's controller (%s)", stage.name, reason)
                if not attempts_left:
                    raise TrainingError(
                        f"{stage.name}: expected Ray Train's controller to live, got {reason}; "
                        "run the same command again: it resumes from the last checkpoint"
                    ) from error


def trainer(stage: Stage) -> TorchTrainer:
    """Return Ray Train's trainer of the stage. The training loop saves the checkpoints itself."""
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
    """Fill the cache of every node that has room for the cases, and release it after the block."""
    cases, accelerator = stage.cases, stage.settings.accelerator_type
    if stage.settings.workers == 0:
        logger.info("%s: %s", stage.name, fill(cases, read_in_process).description)
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
    """Trainer for a cluster that ends with this process.

    It lacks the actor that cleans up after a dead controller.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        # That actor asks the dashboard every second whether the controller lives, and logs a
        # warning if there is no dashboard.
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, PlacementGroupCleanerCallback)
        ]


def trainer_class() -> type[TorchTrainer]:
    """Return Ray Train's trainer on the cluster of RAY_ADDRESS, or else a `LocalClusterTrainer`.

    Only nodes of a cluster may be preempted.
    """
    if os.environ.get("RAY_ADDRESS"):
        return TorchTrainer
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return LocalClusterTrainer


def root_cause(error: TrainingFailedError, stage: Stage) -> TrainingError:
    """Return the error that stopped the run: a worker's TrainingError if there is one.

    The other workers may only have lost their connection to that worker.
    """
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    own = [failure for failure in failures if isinstance(failure, TrainingError)]
    return own[0] if own else TrainingError(f"{stage.name} stopped: {[*failures, error][0]!r}")


def scaling(settings: TrainSettings) -> ScalingConfig:
    """Return Ray Train's scaling: one worker per GPU of the given type, or workers on CPUs."""
    workers, min_workers = settings.workers, settings.min_workers
    return ScalingConfig(
        num_workers=workers if min_workers is None else (min_workers, workers),
        use_gpu=settings.accelerator_type is not None,
        accelerator_type=settings.accelerator_type,
        resources_per_worker={"CPU": settings.cpus_per_worker},
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )
