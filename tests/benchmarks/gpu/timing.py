"""Timing on a device: medians over repeats, and the two ceilings that figures are compared with."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]

SPENT_MS = 6000.0  # of repeats for one figure, at most
REPEATS = (5, 40)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: the median of `repeats`, and the tenth and ninetieth percentile."""

    median: float
    low: float
    high: float
    repeats: int


def measure(call: Call, *, device: torch.device, warmup: int = 3) -> Timing:
    """Time `call` after `warmup` calls. Slow calls are repeated less often."""
    for _ in range(warmup):
        call()
    (once,) = _milliseconds(call, device=device, repeats=1)
    least, most = REPEATS if device.type == "cuda" else (3, 3)
    repeats = max(least, min(most, int(SPENT_MS / max(once, 1e-3))))
    taken = sorted(_milliseconds(call, device=device, repeats=repeats))
    return Timing(
        median=statistics.median(taken),
        low=taken[len(taken) // 10],
        high=taken[-1 - len(taken) // 10],
        repeats=repeats,
    )


def _milliseconds(call: Call, *, device: torch.device, repeats: int) -> list[float]:
    if device.type != "cuda":
        return [_on_clock(call) for _ in range(repeats)]
    # The queue stays full: an event each side of a call, and one wait at the end.
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in zip(marks, marks[1:], strict=False)]


def _on_clock(call: Call) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


@dataclass
class Ceiling:
    """The best throughput of the device, measured again before every row of a table.

    `products` are bfloat16 matrix products in TFLOP/s, `copies` device-to-device copies in TB/s,
    bytes read and written.
    """

    device: torch.device
    products: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)

    def sample(self) -> None:
        """Measure both ceilings once more, on fresh random data."""
        on_gpu = self.device.type == "cuda"
        n = 8192 if on_gpu else 256
        a, b = (torch.randn(n, n, device=self.device).bfloat16() for _ in range(2))
        product = measure(lambda: a @ b, device=self.device)
        self.products.append(2 * n**3 / product.median / 1e9)
        source = torch.randn(2**28 if on_gpu else 2**18, device=self.device)
        target = torch.empty_like(source)
        copy = measure(lambda: target.copy_(source), device=self.device)
        self.copies.append(2 * source.nbytes / copy.median / 1e9)

    @property
    def tflops(self) -> float:
        """The median matrix product."""
        return statistics.median(self.products)

    @property
    def terabytes(self) -> float:
        """The median copy."""
        return statistics.median(self.copies)
