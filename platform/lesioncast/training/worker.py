"""One training process of a run, as Ray Train starts it."""

import logging
from dataclasses import dataclass

import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.preemption import PreemptionInfo
from torch import nn

from lesioncast.cluster.ray_internals import train_context, train_fn_utils
from lesioncast.diffusion.precision import warn_if_slow
from lesioncast.training.data.order import Rows, worker_positions
from lesioncast.training.settings import TrainSettings

# Ray's loggers that repeat every report, which our own progress line already shows. Ray 2.60 names
# the first one by its file and not by its module, so that LoggingConfig does not reach it. The
# second one is used in local mode.
REPORT_LOGS = (str(train_context.__file__), train_fn_utils.__name__)


@dataclass(frozen=True)
class Worker:
    """Worker of a run: its rank, its device, and the positions in a batch that it computes."""

    rank: int
    world_size: int
    device: torch.device
    positions: Rows

    @property
    def is_rank_zero(self) -> bool:
        """Return True for the one worker that writes files and logs."""
        return self.rank == 0


def current_worker(settings: TrainSettings) -> Worker:
    """Return the worker of this process, after setting its CPU threads and Ray's log levels."""
    torch.set_num_threads(settings.cpus_per_worker)
    for name in REPORT_LOGS:
        logging.getLogger(name).setLevel(logging.WARNING)
    run = ray.train.get_context()
    rank, world_size = run.get_world_rank(), run.get_world_size()
    positions = worker_positions(rank, world_size=world_size, batch_size=settings.batch_size)
    worker = Worker(rank, world_size, ray.train.torch.get_device(), positions)
    if worker.is_rank_zero:
        warn_if_slow(settings.precision, worker.device)
    return worker


class PreemptionNotices:
    """Ray's notices that nodes of the run will be preempted. Each notice is returned once."""

    def __init__(self, worker: Worker, settings: TrainSettings) -> None:
        # Only the worker that writes checkpoints has to know. Ray's get_preemption_info would wait
        # for all workers at every call.
        self._listens = worker.is_rank_zero and settings.workers > 0
        self._last: PreemptionInfo | None = None

    def new(self) -> PreemptionInfo | None:
        """Return the newest notice if it has not been returned yet, else None."""
        if not self._listens:
            return None
        previous = self._last
        self._last = train_context.get_train_context().preemption_context.preemption_info
        return None if self._last is previous else self._last


def gpu_memory(worker: Worker) -> dict[str, float]:
    """Return the peak of allocated GPU memory in bytes, as a metric; {} without a GPU."""
    if worker.device.type != "cuda":
        return {}
    return {"gpu_bytes": torch.cuda.max_memory_allocated(worker.device)}


def data_parallel(networks: nn.Module, worker: Worker) -> nn.Module:
    """Wrap the networks in DDP if there are several workers."""
    if worker.world_size == 1:
        return networks
    prepared: nn.Module = ray.train.torch.prepare_model(
        networks, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
    )
    return prepared


def mean_over_workers(value: float, worker: Worker) -> float:
    """Return the mean of `value` over all workers. All workers must call it."""
    if worker.world_size == 1:
        return value
    total = torch.tensor(value, device=worker.device)
    torch.distributed.all_reduce(total)
    return float(total) / worker.world_size
