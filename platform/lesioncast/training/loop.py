"""The training loop of both stages (paper, section 3), as every worker runs it."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import torch
from torch import Tensor, nn

from lesioncast.cluster.metrics import TrainingMetrics
from lesioncast.diffusion.precision import autocast
from lesioncast.diffusion.schedule import logsnr_at
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
from lesioncast.training.modules import rows_to_train_on, stage_loss
from lesioncast.training.progress import (
    MetricsWindow,
    append_metrics,
    progress_line,
    truncate_metrics,
)
from lesioncast.training.settings import TrainSettings
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

STREAMED_AHEAD = 4  # batches, to hide how long a store takes to answer


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Train `config["stage"]`, a Stage, from its last checkpoint to its last step."""
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
            # DDP orders its sums anew after the first pass. In that pass's order, a step after a
            # resumption would differ in its last bits from that of a run without interruption.
            backward(networks, batch, step, stage=stage, worker=worker)
            state.optimizer.zero_grad()
        loss = backward(networks, batch, step, stage=stage, worker=worker)
        norm = nn.utils.clip_grad_norm_(state.trained.values(), settings.gradient_clip)
        state.update(settings)
        window.record(state.step, loss, norm)
        if is_due(state, settings.log_every, settings) or checkpoint_due(state, settings):
            report(stage, state, worker=worker, window=window, meter=meter)
        elif notice := notices.new():
            nodes = ", ".join(node[:8] for node in notice.preempted_node_ids)
            logger.warning("%s: node %s is to go, saving step %d", stage.name, nodes, state.step)
            save_and_prune(stage, state, meter)


def backward(
    networks: nn.Module, batch: Batch, step: int, *, stage: Stage, worker: Worker
) -> Tensor:
    """Put the gradients of the batch in the networks; returns this worker's part of the loss."""
    # DDP averages the gradients of the workers, whose shares of a batch may differ by one case.
    share = len(worker.positions) * worker.world_size / stage.settings.batch_size
    with autocast(stage.settings.precision, worker.device):
        loss = share * batch_loss(networks, batch, step, stage=stage, worker=worker)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def batch_loss(
    networks: nn.Module, batch: Batch, step: int, *, stage: Stage, worker: Worker
) -> Tensor:
    """Equation 3 on this worker's share of the batch, with the step's own t and noise."""
    model, settings = stage.experiment.model, stage.settings
    rows, load = rows_to_train_on(batch.x, model.unet.lesion_load_thresholds)
    placed, positions = batch.at(rows), worker.positions[rows.cpu().numpy()]
    t = randomness.stratified_timesteps(stage.experiment.seed, step, batch_size=settings.batch_size)
    eps = randomness.gaussian(
        stage.experiment.seed,
        step,
        positions=positions,
        shape=tuple(placed.x.shape[1:]),
        device=worker.device,
    )
    logsnr = logsnr_at(torch.from_numpy(t[positions]).to(worker.device), model.schedule)
    return stage_loss(
        networks,
        placed.x,
        eps,
        logsnr,
        arm=placed.arm,
        condition=placed.condition,
        covariates=placed.covariates,
        load=load,
        objective=stage.objective,
        cases=len(batch.x),
    )


def batches(
    stage: Stage, cases: CaseDataset, worker: Worker, *, first: int
) -> Iterator[tuple[int, Batch]]:
    """(step, this worker's share of its batch) for every step from `first`, read ahead."""
    settings = stage.settings

    def read(step: int) -> Batch:
        rows = batch_rows(
            cases.active,
            step,
            seed=stage.experiment.seed,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
        )
        drops = randomness.condition_dropout(
            stage.experiment.seed,
            step,
            batch_size=settings.batch_size,
            channels=stage.experiment.model.control.channels,
            covariates=len(stage.experiment.model.covariates),
            later=stage.post_baseline_channels,
            **settings.dropout_rates,
        )
        return cases.batch(
            active_first(rows, cases.active)[worker.positions],
            drops.at(worker.positions),
            null_arm=stage.experiment.model.unet.null_arm,
            condition=stage.condition,
        )

    depth = STREAMED_AHEAD if cases.streamed else 1
    for step, batch in prefetch(read, range(first, settings.steps), depth=depth):
        yield step, batch.to(worker.device)


def resumed_state(stage: Stage, worker: Worker) -> TrainState:
    """The state at the run's newest checkpoint, or before the first step."""
    state = initial_state(stage.build().to(worker.device).train(), stage.settings)
    # Rank 0 decides, since workers on a network disk may not see a new folder at the same time.
    newest = latest_valid(stage.folder) if worker.is_rank_zero else None
    folder = ray.train.collective.broadcast_from_rank_zero(newest and str(newest.folder))
    if folder is not None:
        load_into(state, open_checkpoint(Path(folder)))
    if worker.is_rank_zero:
        logger.info("%s: step %d of %d", stage.name, state.step, stage.settings.steps)
        truncate_metrics(stage.folder, state.step)
    return state


def is_due(state: TrainState, every: int, settings: TrainSettings) -> bool:
    """Whether something done every so many steps, and after the last one, is due."""
    return state.step % every == 0 or state.step == settings.steps


def checkpoint_due(state: TrainState, settings: TrainSettings) -> bool:
    """Whether this step ends with a checkpoint."""
    return is_due(state, settings.checkpoint_every, settings)


def report(
    stage: Stage,
    state: TrainState,
    *,
    worker: Worker,
    window: MetricsWindow,
    meter: TrainingMetrics,
) -> None:
    """Log and report the steps since the last report, and save a checkpoint where one is due."""
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
    """Save a checkpoint in the run's folder; the newest `keep` stay."""
    began = time.monotonic()
    save_checkpoint(stage.folder, state, stage.identity)
    prune(stage.folder, keep=stage.settings.keep_checkpoints)
    meter.saved(time.monotonic() - began)
