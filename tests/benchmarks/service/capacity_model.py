"""Model the GPUs that a month of forecasts needs: arrivals, batches and a slow autoscaler.

    PYTHONPATH=.:platform python tests/benchmarks/service/capacity_model.py \
        --share 0.35 --peak 312

The operations of a step are counted; everything else is modelled. `--peak` is the vendor's bfloat16
matrix throughput in TFLOPS (312: A100). `--share` is the part of it that a step reaches, an
ASSUMPTION until tests/benchmarks/gpu/paper_on_gpu.py has run on a card.

Work arrives in blocks of samples and is served in order. A replica takes `SLOTS` samples at a time
of any forecasts, which describes batching by step with all slots in use.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GMAC = {"unet": 593.6, "control": 152.7}  # a case forward, tests/benchmarks/gpu/workloads.py
HOURS, TICK = 30 * 24, 10.0  # of a month; seconds
BLOCK, SLOTS = 8, 8  # samples of a handle call; of a batch
# Ray Serve asks for replicas so that each has so many blocks, underway or waiting (serve/app.py).
TARGET = 2
UP_S, DOWN_S = 30.0, 600.0  # Ray Serve's delays
# A node with a GPU: machine, image, weights. A guess that clouds differ in by minutes.
NODE_S = 300.0
ROOM = 3  # most replicas, as a multiple of what work at all hours would need
SCALES = (2_000, 200_000, 20_000_000)

Series = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ForecastOrder:
    """One forecast: `arms` x `samples` masks in a number of solver steps."""

    arms: int = 6
    samples: int = 100
    steps: int = 256

    @property
    def blocks(self) -> int:
        """Return the number of sample blocks, one handle call each."""
        return self.arms * math.ceil(self.samples / BLOCK)

    @property
    def operations(self) -> float:
        """Return the operations of a guided forecast: both networks run twice a step.

        A multiply-add counts as two operations.
        """
        return self.arms * self.samples * self.steps * 2 * 2e9 * sum(GMAC.values())


@dataclass(frozen=True)
class MonthResult:
    """One month's result: GPUs, their utilisation, and the seconds within which 50 % and 95 % of
    the forecasts were complete."""

    mean: float
    most: float
    used: float
    p50: float
    p95: float


def arrivals(monthly: int, rng: np.random.Generator, *, days: int) -> Series:
    """Return the forecasts of each tick: Poisson with a peak at 15:00 and few at night."""
    hours = np.arange(0, days * 24 * 3600, TICK) / 3600
    shape = 1 - np.cos((hours - 3) / 24 * 2 * math.pi)
    weekday = (hours // 24) % 7 < 5
    rate = shape * np.where(weekday, 1.25, 0.375)
    return rng.poisson(monthly / HOURS / 3600 * TICK * rate).astype(np.float64)


def simulate_month(
    order: ForecastOrder,
    arriving: Series,
    *,
    block_s: float,
    bounds: tuple[int, int],
    node_s: float,
) -> MonthResult:
    """Simulate blocks on replicas within `bounds`. A new node takes `node_s` seconds to start."""
    waiting, (least, greatest) = 0.0, bounds
    starting: list[float] = []  # when each new replica will be there
    replicas = float(least)
    done, there = np.zeros_like(arriving), np.zeros_like(arriving)
    above = below = 0.0
    for tick, new in enumerate(arriving):
        waiting += new * order.blocks
        target_replicas = min(max(least, math.ceil(waiting / TARGET)), greatest)
        above = above + TICK if target_replicas > replicas + len(starting) else 0.0
        below = below + TICK if target_replicas < replicas else 0.0
        if above >= UP_S:
            starting += [tick * TICK + node_s] * int(target_replicas - replicas - len(starting))
        if below >= DOWN_S:
            replicas, starting, below = float(target_replicas), [], 0.0
        arrived = sum(1 for at in starting if at <= tick * TICK)
        replicas, starting = replicas + arrived, starting[arrived:]
        done[tick] = min(waiting, replicas * TICK / block_s)
        waiting -= done[tick]
        there[tick] = replicas
    return _outcome(order, arriving, done, there, block_s=block_s)


def _outcome(
    order: ForecastOrder, arriving: Series, done: Series, there: Series, *, block_s: float
) -> MonthResult:
    """Summarise a month. A forecast is complete once all work up to its own is done."""
    came, ended = np.cumsum(arriving) * order.blocks, np.cumsum(done)
    whole = np.searchsorted(ended, came - 1e-6)
    some = (arriving > 0) & (whole < len(ended))
    took = np.repeat(
        (whole - np.arange(len(came)))[some] * TICK + block_s, arriving[some].astype(int)
    )
    p50, p95 = np.percentile(took, [50, 95])
    used = done.sum() * block_s / (there.sum() * TICK)
    return MonthResult(float(there.mean()), float(there.max()), float(used), float(p50), float(p95))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peak", type=float, default=312.0, help="TFLOPS of the card")
    parser.add_argument("--share", type=float, default=0.35, help="of the peak that is reached")
    parser.add_argument("--steps", type=int, nargs="+", default=[256, 24], help="of the solver")
    parser.add_argument("--days", type=int, default=7, help="simulated; rates are a month's")
    args = parser.parse_args(argv)
    print("| forecasts a month | steps | GPU minutes each | GPUs at full load | mean | most | used"
          " | p50 | p95 |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for monthly in SCALES:
        for steps in args.steps:
            order = ForecastOrder(steps=steps)
            seconds = order.operations / (args.peak * 1e12 * args.share)
            full = monthly * seconds / (HOURS * 3600)
            result = simulate_month(
                order,
                arrivals(monthly, np.random.default_rng(0), days=args.days),
                block_s=seconds / order.blocks,
                bounds=(max(1, round(full / 4)), max(2, round(ROOM * full))),
                node_s=NODE_S,
            )
            minutes = f"{result.p50 / 60:.1f} min | {result.p95 / 60:.1f} min"
            print(
                f"| {monthly:,} | {steps} | {seconds / 60:.1f} | {full:,.1f} | {result.mean:,.1f} "
                f"| {result.most:,.0f} | {result.used:.0%} | {minutes} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
