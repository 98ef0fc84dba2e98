"""Record the progress of a run: log lines, metrics.jsonl, and a stop at a non-finite loss."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lesioncast.errors import NonFiniteLossError
from storage.atomic import atomic_write_text

METRICS = "metrics.jsonl"

Metrics = dict[str, float]  # by name; "step" is the number of finished steps
Item = TypeVar("Item")


@dataclass
class MetricsWindow:
    """Losses, gradient norms and times of the steps since the last report."""

    name: str
    began: float = field(default_factory=time.monotonic)
    steps: list[int] = field(default_factory=list)
    # Losses stay on the device until the report, since reading them would wait for the GPU.
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    waited: float = 0.0

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items and add up the time spent waiting for them."""
        began = time.monotonic()
        for item in items:
            self.waited += time.monotonic() - began
            yield item
            began = time.monotonic()

    def record(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Record the loss of a step, counted from 1, and the gradient norm before clipping."""
        self.steps.append(step)
        self.losses.append(loss.detach())
        self.norms.append(norm.detach())

    def close(self, *, batch_size: int) -> Metrics:
        """Return means, rates and the share of time spent waiting for data, and start a new window.

        Raise NonFiniteLossError for the first step whose loss or gradient norm is not finite.
        """
        losses = torch.stack(self.losses).tolist()
        norms = torch.stack(self.norms).tolist()
        self._require_finite(losses, norms)
        now = time.monotonic()
        seconds = now - self.began
        rate = len(losses) / seconds
        metrics = {
            "step": self.steps[-1],
            "loss": sum(losses) / len(losses),
            "gradient_norm": sum(norms) / len(norms),
            "steps_per_s": rate,
            "cases_per_s": rate * batch_size,
            "data_wait": self.waited / seconds,
        }
        self.began, self.steps, self.losses, self.norms, self.waited = now, [], [], [], 0.0
        return metrics

    def _require_finite(self, losses: list[float], norms: list[float]) -> None:
        for step, loss, norm in zip(self.steps, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLossError(
                    f"{self.name}: expected a finite loss and gradient norm, got loss {loss} and "
                    f"gradient norm {norm} at step {step}; lower {self.name}.learning_rate, or set "
                    f"{self.name}.precision to float32, and run again: it resumes from the last "
                    "checkpoint"
                )


def progress_line(metrics: Mapping[str, float], *, steps: int) -> str:
    """Format metrics as a line like `step 120/600  loss 0.0123  3.1 steps/s  2 min left`."""
    rate = metrics["steps_per_s"]
    left = duration((steps - metrics["step"]) / rate)
    return f"step {metrics['step']}/{steps}  loss {metrics['loss']:.4f}  {rate:.3g} steps/s  {left}"


def duration(seconds: float) -> str:
    """Format seconds in a suitable unit, for example `2 min left`."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min left"
    return f"{seconds / 3600:.1f} h left"


def append_metrics(run: Path, metrics: Mapping[str, float]) -> None:
    """Append one line to the run's metrics.jsonl."""
    with (run / METRICS).open("a") as log:
        log.write(json.dumps(metrics) + "\n")


def read_metrics(run: Path) -> list[Metrics]:
    """Read the lines of a run's metrics.jsonl; return [] if there is no such file.

    A last line without its end, as a killed run leaves it, is skipped.
    """
    path = run / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def truncate_metrics(run: Path, step: int) -> None:
    """Remove the lines after `step`. A resumed run writes them again."""
    remaining = [metrics for metrics in read_metrics(run) if metrics["step"] <= step]
    lines = "".join(json.dumps(metrics) + "\n" for metrics in remaining)
    atomic_write_text(run / METRICS, lines)
