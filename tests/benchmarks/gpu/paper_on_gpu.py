"""Measure the paper's networks on one GPU as shares of the device's matrix throughput.

    PYTHONPATH=.:platform python3 tests/benchmarks/gpu/paper_on_gpu.py --out FOLDER

Requires torch and numpy. Without a GPU the same code runs once over networks of a few thousand
weights. That checks the script; its figures do not describe any machine.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.data.tables import report
from tests.benchmarks.gpu import layer_costs, workloads
from tests.benchmarks.gpu.timing import Call, Ceiling, measure
from tests.benchmarks.gpu.workloads import (
    AUTOTUNED,
    BEST,
    GRAPHS,
    LADDER,
    PAPER,
    REDUCED,
    SHIPPED,
    Scale,
    Variant,
    backend_switches,
)

SCHEMA = 1
SECTIONS = (
    *("parts", "stage1", "profile", "forward", "stage2", "evaluation", "sampling"),
    "autotune",  # minutes of compilation: last
)
Record = dict[str, Any]
Build = Callable[[Scale, Variant, torch.device], Call]
STEP_OF = {"autotune": "stage1"}
COUNTED_AS = STEP_OF | {"forward": "unet"}
STEPS = 256  # of the paper's sampler


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write both forms after every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for paper.json and paper.md")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no row after these")
    parser.add_argument("--batch", type=int, help="cases a step (default: the paper's 16)")
    args = parser.parse_args(argv)
    requested = args.only.split(",")
    if unknown := set(requested) - set(SECTIONS):
        parser.error(f"--only takes {', '.join(SECTIONS)}; got {', '.join(sorted(unknown))}")
    bench = Bench(args.batch, minutes=args.minutes, out=args.out)
    for section in (section for section in SECTIONS if section in requested):
        bench.run(section)
    bench.save()
    print(report(bench.record))
    return 0


class Bench:
    """One run: the device, its measured ceiling, and the record so far."""

    def __init__(self, batch: int | None, *, minutes: float, out: Path | None) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.reduced = self.device.type != "cuda"
        self.sampled = 2 if self.reduced else 8  # steps of a timed sample
        scale = REDUCED if self.reduced else PAPER
        self.scale = replace(scale, batch=batch or scale.batch)
        self.deadline = time.monotonic() + 60 * minutes
        self.out = out
        self.ceiling = Ceiling(self.device)
        self.ceiling.sample()
        self.operations = workloads.operations(self.scale)
        self.record: Record = {
            "schema": SCHEMA,
            "date": datetime.now(UTC).isoformat(timespec="minutes"),
            "reduced": self.reduced,
            "device": describe_device(self.device),
            "scale": {"size": self.scale.size, "batch": self.scale.batch},
            "paper": asdict(PAPER.model),
            "gmac_per_case": {
                "paper": {name: flops / 2e9 for name, flops in workloads.operations(PAPER).items()},
                "measured": {name: flops / 2e9 for name, flops in self.operations.items()},
            },
            "rows": [],
            "parts": [],
            "convolutions": [],
            "kernels": [],
        }

    def run(self, section: str) -> None:
        """Measure one section."""
        if section == "parts":
            self.measure_parts()
        elif section == "profile":
            if not self.reduced:
                self.attempt({"section": section, "name": BEST.name}, self.kernels)
        else:
            for scale, variant, build in self.planned(section):
                self.row(section, scale, variant, build)

    def planned(self, section: str) -> Iterator[tuple[Scale, Variant, Build]]:
        """Yield what a section measures, the most important variant first."""
        single = replace(self.scale, batch=1)
        if self.reduced:  # one plain, one traced: as much of the code as a CPU can run
            traced = {"stage1": (BEST,), "stage2": (BEST,)}.get(section, ())
            variants: Sequence[Variant] = (SHIPPED, *traced) if section != "autotune" else ()
        elif section == "autotune":
            variants = (AUTOTUNED,)
        elif section == "stage1":
            variants = sorted(LADDER, key=lambda variant: variant not in (SHIPPED, BEST))
        elif section == "sampling":
            variants = (SHIPPED, BEST)
        else:
            variants = (SHIPPED, BEST, GRAPHS)
        build: Build = getattr(workloads, STEP_OF.get(section, section))
        if section == "sampling":
            build = partial(workloads.sampling, steps=self.sampled)
        for variant in variants:
            yield self.scale, variant, build
        if section == "evaluation":
            for variant in variants:
                yield single, variant, build

    def row(self, section: str, scale: Scale, variant: Variant, build: Build) -> None:
        """Time one variant of one section against the ceiling."""
        row: Record = {
            "section": section,
            "name": variant.name,
            "batch": scale.batch,
            "variant": asdict(variant),
        }

        def timed() -> None:
            self.ceiling.sample()
            self.free_memory()
            with backend_switches(variant):
                call = build(scale, variant, self.device)
                started = time.perf_counter()
                call()
                self.synchronise()
                row["first_s"] = time.perf_counter() - started
                if variant.compiled:
                    row["graph_breaks"] = sum(counters["graph_break"].values())
                timing = measure(call, device=self.device)
            row.update(asdict(timing))
            row["ceiling_tflops"] = self.ceiling.products[-1]
            flops = self.flops(section) * scale.batch
            row["tflops"] = flops / timing.median / 1e9
            row["share"] = row["tflops"] / row["ceiling_tflops"]
            if section == "sampling":
                row["minutes_of_256_steps"] = timing.median * STEPS / self.sampled / 6e4
            if not self.reduced:
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30

        self.attempt(row, timed)

    def flops(self, section: str) -> float:
        """Return the floating-point operations per case of a section."""
        if section == "sampling":
            return self.sampled * self.operations["evaluation"]
        return self.operations[COUNTED_AS.get(section, section)]

    def attempt(self, row: Record, measured: Call) -> None:
        """Record one row. Running out of memory or a failed compilation does not end the run."""
        self.record["rows"].append(row)
        if time.monotonic() > self.deadline:
            row["failed"] = "not begun: out of time"
            return
        self.free_memory()
        try:
            measured()
        except RuntimeError as error:  # torch.OutOfMemoryError and compilers' errors are of it
            row["failed"] = str(error).strip().splitlines()[0][:160]
        self.save()
        summary = row.get("failed") or ", ".join(
            f"{key} {row[key]:.3g}"
            for key in ("median", "tflops", "share", "first_s")
            if key in row
        )
        print(f"{row['section']}: {row['name']}: {summary}", file=sys.stderr, flush=True)

    def measure_parts(self) -> None:
        """Measure convolutions and other parts separately."""

        def alone() -> None:
            self.record["convolutions"] = layer_costs.convolutions(self.scale, self.device)

        self.attempt({"section": "parts", "name": "convolutions"}, alone)
        for part in layer_costs.PARTS:

            def one(part: Callable[..., Iterator[Record]] = part) -> None:
                for row in part(self.scale, self.device):
                    self.record["parts"].append(row)

            self.attempt({"section": "parts", "name": part.__name__}, one)

    def kernels(self) -> None:
        """Record the kernels that take most of a step's time in the best variant."""
        with backend_switches(BEST):
            call = workloads.stage1(self.scale, BEST, self.device)
            for _ in range(3):
                call()
            self.synchronise()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                call()
                self.synchronise()
        spent = sorted(profiler.key_averages(), key=lambda each: -each.self_device_time_total)
        self.record["kernels"] = [
            {"kernel": each.key, "calls": each.count, "ms": each.self_device_time_total / 1e3}
            for each in spent[:25]
        ]

    def free_memory(self) -> None:
        """Free the memory and compiled code of the last row."""
        gc.collect()
        torch.compiler.reset()
        counters.clear()
        if not self.reduced:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def synchronise(self) -> None:
        """Wait until the device has finished all queued work."""
        if not self.reduced:
            torch.cuda.synchronize()

    def save(self) -> None:
        """Write the record so far as JSON and as tables."""
        self.record["ceiling"] = {
            "tflops": self.ceiling.products,
            "tflops_median": self.ceiling.tflops,
            "terabytes": self.ceiling.copies,
            "terabytes_median": self.ceiling.terabytes,
        }
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "paper.json").write_text(json.dumps(self.record, indent=1))
            (self.out / "paper.md").write_text(report(self.record))


def describe_device(device: torch.device) -> Record:
    """Describe the device and software that the figures were measured on."""
    on_gpu = device.type == "cuda"
    return {
        "name": torch.cuda.get_device_name() if on_gpu else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
    }


if __name__ == "__main__":
    sys.exit(main())
