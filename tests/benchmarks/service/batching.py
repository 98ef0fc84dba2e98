"""Compare three ways to share the networks between requests on Ray Serve.

    PYTHONPATH=.:platform python tests/benchmarks/service/batching.py \
        --bundle out/demo/bundle --store STORE

- By step: the sampler replica of the service.
- By request: @serve.batch, eight samples that run together until the last is done.
- One at a time: the sampler of the service with a queue before it.

Each has one replica, the same networks, patients encoded once, and the same requests: all at once,
then with Poisson arrivals at `--load` times the rate that batching by step reached.
"""

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from lesioncast.cluster.connection import RaySettings, ray_cluster
from lesioncast.diffusion.continuous_batching import ContinuousBatcher, run_until_idle
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.forecasting.members import MemberDraw
from lesioncast.forecasting.sampling import sample_seeds
from serve.api.schemas import SamplerOverrides
from serve.inference.engine_thread import EngineKey, EngineThread
from serve.inference.sampler import SamplerWorker
from serve.patients import PatientRef
from serve.settings import ServiceSettings
from storage import open_store, parse_location

ARMS_AND_SAMPLES = ((1, 2), (1, 8), (6, 2), (6, 4))  # of a request, equally likely
ROWS = 8  # of a forward pass on a CPU
HEAD = (
    "| arrivals | batching | samples/s | p50 | p95 | passes | rows without a sample |\n"
    "|---|---|---|---|---|---|---|"
)
Make = Callable[[EngineKey], ContinuousBatcher[SampleCondition]]


@dataclass(frozen=True)
class TimedRequest:
    """A request: its arrival time, its patient, and its calls as (arm, seeds)."""

    at: float
    patient: PatientRef
    calls: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def samples(self) -> int:
        """Return the number of samples over all arms."""
        return sum(len(seeds) for _, seeds in self.calls)


@dataclass
class Passes:
    """Counts of forward passes, and of their rows that held a sample."""

    passes: int = 0
    rows: int = 0

    def counting(self, make: Make) -> Make:
        """Return engines whose steps are counted."""

        def made(key: EngineKey) -> ContinuousBatcher[SampleCondition]:
            engine = make(key)
            step = engine.step

            def counted() -> list[Any]:
                finished = step()
                drawn = sum(
                    wanted.condition.lesion_load != 0 for wanted, _ in finished
                )  # none for no lesions
                self.passes += engine.running + drawn > 0
                self.rows += engine.running + drawn
                return finished

            engine.step = counted  # type: ignore[method-assign]
            return engine

        return made


class ByRequest:
    """Replacement of `EngineThread`: a batch runs until its last sample is done."""

    def __init__(self, make: Make) -> None:
        self._make = make

    async def draw(
        self,
        _: Hashable,
        told: Sequence[MemberDraw],
        seeds: Sequence[int],
        sampler: SamplerConfig,
    ) -> list[Tensor]:
        """Draw samples like `EngineThread.draw`."""
        each = zip(told, seeds, strict=True)
        return list(await asyncio.gather(*(self._any((of, seed, sampler)) for of, seed in each)))

    async def _any(self, sample: tuple[MemberDraw, int, SamplerConfig]) -> Tensor:
        """Return x of a sample. One without lesions needs no network and no place in a batch."""
        (member, condition), seed, sampler = sample
        if condition.lesion_load == 0:
            return run_until_idle(self._make(EngineKey(member, sampler)), [condition], [seed])[0]
        found: Tensor = await self._one(sample)
        return found

    @ray_serve.batch(max_batch_size=ROWS, batch_wait_timeout_s=0.01)
    async def _one(self, batch: list[tuple[MemberDraw, int, SamplerConfig]]) -> list[Tensor]:
        told, seeds, samplers = zip(*batch, strict=True)
        engine = self._make(EngineKey(0, samplers[0]))  # this study's bundle has one member
        conditions = [draw.condition for draw in told]
        return list(await asyncio.to_thread(run_until_idle, engine, conditions, seeds))


@ray_serve.deployment(max_ongoing_requests=4096, ray_actor_options={"num_cpus": 1})
class BatchingReplica:
    """The service's sampler, which batches by step or by request."""

    def __init__(self, settings: ServiceSettings, *, by_step: bool, steps: int) -> None:
        self._steps = steps
        self._passes = Passes()
        self._sampler = SamplerWorker(settings, lambda _: None)
        make = self._passes.counting(self._sampler._thread._make_engine)
        self._sampler._thread = (
            EngineThread(make, lambda _: None) if by_step else ByRequest(make)  # type: ignore[assignment]
        )

    async def draw(self, job: str, patient: PatientRef, arm: int, seeds: tuple[int, ...]) -> int:
        """Return the total number of lesions of the samples."""
        drawn = await self._sampler.draw(
            job, patient, arm, seeds, SamplerOverrides(num_steps=self._steps)
        )
        return sum(found.plain for found in drawn.lesions)

    def passes(self) -> tuple[int, int]:
        """Return the forward passes and their rows since the last call."""
        found = self._passes.passes, self._passes.rows
        self._passes.passes = self._passes.rows = 0
        return found


def requests(patients: Sequence[str], number: int, *, rate: float, seed: int) -> list[TimedRequest]:
    """Return `number` requests at `rate` per second. A rate of 0 sends all at once."""
    rng = random.Random(seed)
    requested, now = [], 0.0
    for place in range(number):
        arms, samples = rng.choice(ARMS_AND_SAMPLES)
        name = rng.choice(patients)
        seeds = sample_seeds(place, name, samples)
        blocks = [seeds[first : first + ROWS] for first in range(0, samples, ROWS)]
        calls = tuple((arm, block) for arm in rng.sample(range(6), arms) for block in blocks)
        requested.append(TimedRequest(now, PatientRef(name, None), calls))
        now += rng.expovariate(rate) if rate else 0.0
    return requested


async def serve_all(
    replica: DeploymentHandle[Any], requested: Sequence[TimedRequest], *, together: bool
) -> tuple[list[float], int, float]:
    """Return each request's seconds until its last sample, all lesions, and the total seconds."""
    began, alone = time.monotonic(), asyncio.Lock()

    async def call(job: str, each: TimedRequest) -> int:
        calls = (replica.draw.remote(job, each.patient, arm, seeds) for arm, seeds in each.calls)
        return sum(await asyncio.gather(*calls))

    async def one(index: int, each: TimedRequest) -> tuple[float, int]:
        await asyncio.sleep(max(0.0, began + each.at - time.monotonic()))
        if together:
            lesions = await call(str(index), each)
        else:
            async with alone:
                lesions = await call(str(index), each)
        return time.monotonic() - began - each.at, lesions

    ends = await asyncio.gather(*(one(index, each) for index, each in enumerate(requested)))
    waits, lesions = zip(*ends, strict=True)
    return list(waits), sum(lesions), time.monotonic() - began


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each way to batch and each pattern of arrivals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--store", type=parse_location, required=True)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--steps", type=int, default=28, help="of a sample")
    parser.add_argument("--load", type=float, default=0.7)
    args = parser.parse_args(argv)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    settings = ServiceSettings(bundle=args.bundle, store=args.store, demo=True).absolute()
    patients = [
        case.subject for case in cases_with_outcome(open_store(settings.store).select(split="test"))
    ]
    with ray_cluster(RaySettings(num_cpus=3)):
        start = partial(_started, settings=settings, steps=args.steps)
        ways = {
            "by step": (start("step", by_step=True), True),
            "by request, @serve.batch": (start("request", by_step=False), True),
            "one request at a time": (start("alone", by_step=True), False),
        }
        print(HEAD, flush=True)
        rate = 0.0
        for words in ("all at once", f"{args.load:.0%} of that"):
            requested = requests(patients, args.requests, rate=rate, seed=0)
            drawn = set()
            for name, (replica, together) in ways.items():
                lesions, row, seconds = _row(words, name, replica, requested, together=together)
                print(row, flush=True)
                drawn.add(lesions)
                if name == "by step":
                    fastest = len(requested) / seconds
            if len(drawn) > 1:
                raise AssertionError(f"expected the same lesions however drawn, got {drawn}")
            rate = args.load * fastest
        ray_serve.shutdown()
    return 0


def _started(
    name: str, *, settings: ServiceSettings, by_step: bool, steps: int
) -> DeploymentHandle[Any]:
    deployment: Any = BatchingReplica
    bound = deployment.bind(settings, by_step=by_step, steps=steps)
    replica = ray_serve.run(bound, name=name, route_prefix=None)
    patient = PatientRef(open_store(settings.store).select(split="test")[0].subject, None)
    replica.draw.remote("warm", patient, 0, tuple(range(ROWS))).result()
    replica.passes.remote().result()
    return replica


def _row(
    words: str,
    name: str,
    replica: DeploymentHandle[Any],
    requested: Sequence[TimedRequest],
    *,
    together: bool,
) -> tuple[int, str, float]:
    waits, lesions, seconds = asyncio.run(serve_all(replica, requested, together=together))
    passes, rows = replica.passes.remote().result()
    cuts = quantiles(waits, n=20)
    rate = sum(request.samples for request in requested) / seconds
    line = (
        f"| {words} | {name} | {rate:.2f} | {cuts[9]:.1f} s | {cuts[18]:.1f} s | {passes} "
        f"| {1 - rows / (ROWS * passes):.0%} |"
    )
    return lesions, line, seconds


if __name__ == "__main__":
    sys.exit(main())
