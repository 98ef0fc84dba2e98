"""Training loop of both stages (paper, section 3), as every worker runs it."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import torch
from torch import Tensor, nn

from lesioncast.cluster.metrics import TrainingMetrics
from lesioncast.diffusion.precision import autocast
from lesioncast.training import randomness
from lesioncast.training.checkpoint import (
    latest_valid,
    load_into,
    open_checkpoint,
    prune,
    save_checkpoint,
)
from lesioncast.training.data.dataset import Batch, CaseDataset, prefetch
from lesioncast.training.data.node_cache import open_cases, read_in_process
from lesioncast.training.data.order import active_first, batch_rows
from lesioncast.training.experiment import Stage
from lesioncast.training.modules import LossInputs, rows_to_train_on, stage_loss
from lesioncast.training.progress import (
    MetricsWindow,
    append_metrics,
    progress_line,
    truncate_metrics,
)
from lesioncast.training.settings import TrainSettings
from lesioncast.training.spatial.base_maps import BaseMaps
from lesioncast.training.state import TrainState, initial_state, learning_rate
from lesioncast.training.worker import (
    PreemptionNotices,
    Worker,
    current_worker,
    data_parallel,
    gpu_memory,
    mean_over_workers,
)

logger = logging.getLogger(__name__)

STREAM_PREFETCH = 4  # batches read ahead from the store, to hide its latency


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train the `Stage` in `config["stage"]` from its last checkpoint to its last step."""
    stage: Stage = config["stage"]
    settings = stage.settings
    worker = current_worker(settings)
    cases = open_cases(stage.cases, read_in_process)
    state = resumed_state(stage, worker)
    networks = data_parallel(state.networks, worker)
    window, meter = MetricsWindow(stage.name), TrainingMetrics(stage.name)
    notices, first = PreemptionNotices(worker, settings), state.step
    for step, batch in window.timed(batches(stage, cases, worker, first=first)):
        if step == first and worker.world_size > 1:
            # DDP changes the order of its sums after the first pass. The first step after a
            # resumption would therefore differ in its last bits from the same step of a run
            # without interruption. One pass more, whose gradients are dropped, prevents that.
            backward(networks, batch, step, stage=stage, worker=worker)
            state.optimizer.zero_grad()
        loss = backward(networks, batch, step, stage=stage, worker=worker)
        norm = nn.utils.clip_grad_norm_(state.parameters.values(), settings.gradient_clip)
        state.update(settings)
        window.record(state.step, loss, norm)
        if is_due(state, settings.log_every, settings) or checkpoint_due(state, settings):
            report(stage, state, worker=worker, window=window, meter=meter)
        elif notice := notices.new():
            nodes = ", ".join(node[:8] for node in notice.preempted_node_ids)
            logger.warning(
                "%s: node %s will be preempted; saving checkpoint at step %d",
                stage.name,
                nodes,
                state.step,
            )
            save_and_prune(stage, state, meter)


def backward(
    networks: nn.Module, batch: Batch, step: int, *, stage: Stage, worker: Worker
) -> Tensor:
    """Compute the gradients of the batch and return this worker's part of the loss."""
    # DDP averages the gradients of the workers. Their shares of a batch may differ by one case, so
    # that each loss is weighted by its share.
    share = len(worker.positions) * worker.world_size / stage.settings.batch_size
    with autocast(stage.settings.precision, worker.device):
        loss = share * batch_loss(networks, batch, step, stage=stage, worker=worker)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def batch_loss(
    networks: nn.Module, batch: Batch, step: int, *, stage: Stage, worker: Worker
) -> Tensor:
    """Return the loss (equation 3) of this worker's share of the batch at `step`."""
    model, settings = stage.experiment.model, stage.settings
    seed = stage.experiment.seed
    rows, lesion_load = rows_to_train_on(batch.x, model.unet.lesion_load_thresholds)
    # Noise is keyed on the position in the whole batch, not in this worker's share.
    positions = worker.positions[rows.cpu().numpy()]
    t = randomness.stratified_timesteps(seed, step, batch_size=settings.batch_size)
    noise = randomness.gaussian(
        seed,
        step,
        positions=positions,
        shape=tuple(batch.x.shape[1:]),
        device=worker.device,
    )
    inputs = LossInputs(
        batch.at(rows),
        lesion_load,
        torch.from_numpy(t[positions]).to(worker.device),
        noise,
    )
    return stage_loss(
        networks,
        inputs,
        schedule=model.schedule,
        objective=stage.objective,
        cases=len(worker.positions),
    )


def batches(
    stage: Stage, cases: CaseDataset, worker: Worker, *, first: int
) -> Iterator[tuple[int, Batch]]:
    """Yield (step, this worker's share of the batch) for every step from `first`.

    A model with lesion loads is given active cases alone, or one inactive case if there is none.
    Threads read the next batches ahead.
    """
    settings = stage.settings
    base_maps = BaseMaps.of(stage.experiment)

    def read(step: int) -> Batch:
        rows = batch_rows(
            cases.active,
            step,
            seed=stage.experiment.seed,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
        )
        dropout = randomness.condition_dropout(
            stage.experiment.seed,
            step,
            batch_size=settings.batch_size,
            post_baseline=stage.post_baseline_channels,
            rates=settings.dropout_rates,
            covariates=len(stage.experiment.model.covariates),
        )
        rows = active_first(rows, cases.active)[worker.positions]
        if stage.experiment.model.unet.lesion_load_thresholds:
            rows = rows[: max(1, cases.active[rows].sum())]  # see `rows_to_train_on`
        dropout = dropout.at(worker.positions[: len(rows)])
        batch = cases.batch(
            rows,
            dropout,
            null_arm=stage.experiment.model.unet.null_arm,
            condition=stage.condition,
        )
        if base_maps is None:
            return batch
        return replace(batch, log_density=base_maps.batch(rows, dropout.channels))

    depth = STREAM_PREFETCH if cases.streamed else 1
    for step, batch in prefetch(read, range(first, settings.steps), depth=depth):
        yield step, batch.to(worker.device)


def resumed_state(stage: Stage, worker: Worker) -> TrainState:
    """Return the state at the run's newest checkpoint, or the state before the first step."""
    state = initial_state(stage.build().to(worker.device).train(), stage.settings)
    # Rank 0 decides for all: on a network disk, workers may not see a new folder at the same time.
    newest = latest_valid(stage.folder) if worker.is_rank_zero else None
    folder = ray.train.collective.broadcast_from_rank_zero(newest and str(newest.folder))
    if folder is not None:
        load_into(state, open_checkpoint(Path(folder)))
    if worker.is_rank_zero:
        logger.info("%s: step %d of %d", stage.name, state.step, stage.settings.steps)
        truncate_metrics(stage.folder, state.step)
    return state


def is_due(state: TrainState, every: int, settings: TrainSettings) -> bool:
    """Return True at every `every`-th step and at the last step."""
    return state.step % every == 0 or state.step == settings.steps


def checkpoint_due(state: TrainState, settings: TrainSettings) -> bool:
    """Return True if this step ends with a checkpoint."""
    return is_due(state, settings.checkpoint_every, settings)


def report(
    stage: Stage,
    state: TrainState,
    *,
    worker: Worker,
    window: MetricsWindow,
    meter: TrainingMetrics,
) -> None:
    """Log and report the steps since the last report, and save a checkpoint if one is due.

    All workers must call it: the loss is averaged over them.
    """
    settings = stage.settings
    metrics = window.close(batch_size=settings.batch_size)
    metrics["loss"] = mean_over_workers(metrics["loss"], worker)
    metrics["learning_rate"] = learning_rate(state.step - 1, settings)
    if worker.is_rank_zero:
        logger.info("%s: %s", stage.name, progress_line(metrics, steps=settings.steps))
        append_metrics(stage.folder, metrics)
        meter.reported({**metrics, **gpu_memory(worker)})
        if checkpoint_due(state, settings):
            save_and_prune(stage, state, meter)
    ray.train.report(metrics)


def save_and_prune(stage: Stage, state: TrainState, meter: TrainingMetrics) -> None:
    """Save a checkpoint in the run's folder and remove the oldest ones beyond the limit."""
    began = time.monotonic()
    save_checkpoint(stage.folder, state, stage.identity)
    prune(stage.folder, keep=stage.settings.keep_checkpoints)
    meter.saved(time.monotonic() - began)
