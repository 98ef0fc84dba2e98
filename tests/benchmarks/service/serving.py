"""Compare three ways to share forward passes between requests, counted in passes.

    PYTHONPATH=.:platform python tests/benchmarks/service/serving.py

The networks are left out: on a CPU a pass of eight rows takes the same time whatever the rows hold,
so waiting and waste can be counted exactly, even on a busy machine. The engine is the real one. The
costs of batching beside the passes are not included.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles

import torch

from lesioncast.diffusion.continuous_batching import (
    ContinuousBatcher,
    ReverseProcess,
    SampleRequest,
)
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig

ROWS, STEPS = 8, 18  # of a pass on a CPU; of the demo's sampler
SIZES = (2, 2, 8, 24, 96)  # samples of a request, from one arm of two to six of sixteen
HEAD = "| load | batching | samples a pass | p50 | p95 | wasted rows |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class TimedRequest:
    """A request: its arrival time, and the steps after which each of its samples is settled."""

    at: float
    steps: tuple[int, ...]


Ends = dict[int, float]  # when each request has its last sample
Policy = Callable[[Sequence[TimedRequest]], tuple[Ends, float]]
"""requests in the order of arrival -> (ends, passes run)."""


def requests(number: int, *, load: float, seed: int) -> list[TimedRequest]:
    """Return Poisson arrivals at `load` times the capacity without waste. 0 means all at once."""
    rng = random.Random(seed)
    requested, now = [], 0.0
    for _ in range(number):
        steps = tuple(rng.randint(STEPS // 3, STEPS) for _ in range(rng.choice(SIZES)))
        requested.append(TimedRequest(now, steps))
        mean = sum(SIZES) / len(SIZES) * (STEPS / 3 + STEPS) / 2 / ROWS
        now += rng.expovariate(load / mean) if load else 0.0
    return requested


def by_step(requested: Sequence[TimedRequest]) -> tuple[Ends, float]:
    """Batch with the engine: a sample enters and leaves at any step."""

    def denoiser(left: Sequence[list[int]]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def denoise(z: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            for each in left:
                each[0] -= 1
            return torch.tensor([[float(each[0] == 0)] for each in left])

        return denoise

    process = ReverseProcess(
        denoiser,
        shape=(1,),
        schedule=ScheduleConfig(0, 0),
        sampler=SamplerConfig(solver="ddim", num_steps=STEPS),
        is_decided=lambda x_hat: x_hat[:, 0] > 0,
    )
    engine = ContinuousBatcher(process, slots=ROWS)
    now, passes, ends = 0.0, 0, Ends()
    arriving = list(enumerate(requested))
    while arriving or engine.busy:
        if not engine.busy:
            now = max(now, arriving[0][1].at)
        while arriving and arriving[0][1].at <= now:
            number, each = arriving.pop(0)
            engine.add(SampleRequest(number, k, [steps], k) for k, steps in enumerate(each.steps))
        now, passes = now + 1, passes + 1
        ends |= {int(str(sample.request)): now for sample, _ in engine.step()}
    return ends, passes


def by_batch(requested: Sequence[TimedRequest], *, mixed: bool = True) -> tuple[Ends, float]:
    """Run eight samples together until the last is done; `mixed` allows several requests."""
    now, passes, ends = 0.0, 0, Ends()
    arriving = [
        (each.at, number, steps) for number, each in enumerate(requested) for steps in each.steps
    ]
    while arriving:
        now = max(now, arriving[0][0])
        batch = [
            one for one in arriving[:ROWS] if one[0] <= now and (mixed or one[1] == arriving[0][1])
        ]
        arriving = arriving[len(batch) :]
        taken = max(steps for _, _, steps in batch)
        now, passes = now + taken, passes + taken
        ends |= {number: now for _, number, _ in batch}
    return ends, passes


def one_at_a_time(requested: Sequence[TimedRequest]) -> tuple[Ends, float]:
    """Run one request at a time."""
    return by_batch(requested, mixed=False)


POLICIES: dict[str, Policy] = {
    "by step": by_step,
    "by request, as @serve.batch": by_batch,
    "one request at a time": one_at_a_time,
}


def row(name: str, policy: Policy, requested: Sequence[TimedRequest], *, load: float) -> str:
    """Return one line of the table."""
    ends, passes = policy(requested)
    waits = [ends[number] - request.at for number, request in enumerate(requested)]
    cuts = quantiles(waits, n=20)
    useful = sum(sum(request.steps) for request in requested)
    samples = sum(len(request.steps) for request in requested)
    wasted = 1 - useful / (ROWS * passes)
    rate = f"{samples / passes:.3f}"
    words = "all at once" if load == 0 else f"{load:.0%}"
    return f"| {words} | {name} | {rate} | {cuts[9]:.0f} | {cuts[18]:.0f} | {wasted:.0%} |"


def main() -> None:
    """Print the table. Times are in passes."""
    print(HEAD)
    for load in (0.0, 0.6):
        requested = requests(60, load=load, seed=0)
        for name, policy in POLICIES.items():
            print(row(name, policy, requested, load=load), flush=True)


if __name__ == "__main__":
    main()
