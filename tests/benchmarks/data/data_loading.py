"""Measure conversion and data loading beside NIfTI files and MONAI's PersistentDataset.

    PYTHONPATH=.:platform python tests/benchmarks/data/data_loading.py --out OUT \
        --config jobs/configs/paper.yaml --subjects 64 --set 'simulation.shape=[21, 256, 256]'

Simulate the trial below OUT once and convert it with one and two workers. Then read all cases in
random order with one loader after the other, `--rounds` times, with the allocator settings of Ray's
workers. Print medians and ranges over the rounds; ratios are taken within a round.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesioncast.cluster.connection import MALLOC_ENV, RaySettings, ray_cluster
from lesioncast.config import load_config
from lesioncast.jobs import convert, simulate
from lesioncast.jobs.command.arguments import job_parser
from storage import open_store
from tests.benchmarks.data import data_loaders
from tests.benchmarks.data.tables import table
from tests.benchmarks.data.worker_memory import peaks_of_workers

logger = logging.getLogger(__name__)

BATCH = 16
SEED = 0


@dataclass(frozen=True)
class Conversion:
    """Time and memory of converting the whole trial."""

    workers: int
    seconds: float
    cases_per_second: float
    worker_mib: float


@dataclass(frozen=True)
class Reading:
    """Cases per second of each round of one way to read them."""

    name: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.rounds)

    def times(self, other: "Reading") -> float:
        """Return the speed relative to another loader: the median of the rounds' ratios."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(own / others for own, others in pairs)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate the trial, measure, and print the tables."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("--out", type=Path, required=True, help="for the trial, stores and record")
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    record = measure(args, args.out.absolute())
    text = report(record)
    (args.out / "loading.json").write_text(json.dumps(record, indent=2) + "\n")
    (args.out / "loading.md").write_text(text)
    print(text)
    return 0


def measure(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Return the whole benchmark as plain numbers."""
    begun = os.getloadavg()
    flags = ["--config", str(args.config), "--set", f"simulation.subjects={args.subjects}"]
    for override in (
        *args.overrides,
        "store.split_fractions=[1.0, 0.0, 0.0]",
        "store.cases_per_shard=16",
    ):
        flags += ["--set", override]
    require(simulate.main([*flags, "--bids", str(out / "bids")]))
    conversions = [time_conversion(flags, out, workers=workers) for workers in (1, 2)]
    store = open_store(out / "store-2.zarr")
    config = load_config(args.config, flags[3::2])
    with ray_cluster(RaySettings(num_cpus=2)):
        ways = data_loaders.loaders(
            store, out, bids=out / "bids", layout=config.store.layout, batch=BATCH
        )
        readings = read(ways, cases=len(store.cases), rounds=args.rounds)
        worker_mib = max(peaks_of_workers(), default=0.0)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "slab": store.spec.slab,
        "cases": len(store.cases),
        "cores": os.cpu_count(),
        "load_average": {"before": begun[0], "after": os.getloadavg()[0]},
        "conversions": [asdict(each) for each in conversions],
        "readings": [asdict(each) for each in readings],
        "ray_data_worker_mib": worker_mib,
    }


def require(code: int) -> None:
    """Raise SystemExit if a job failed."""
    if code:
        raise SystemExit(code)


def time_conversion(flags: list[str], out: Path, *, workers: int) -> Conversion:
    """Convert the trial on a cluster of so many CPUs. Starting the cluster is not counted."""
    store = out / f"store-{workers}.zarr"
    shutil.rmtree(store, ignore_errors=True)
    with ray_cluster(RaySettings(num_cpus=workers)):
        started = time.perf_counter()
        require(convert.main([*flags, "--bids", str(out / "bids"), "--store", str(store)]))
        seconds = time.perf_counter() - started
        peak = max(peaks_of_workers(), default=0.0)
    return Conversion(workers, seconds, len(open_store(store).cases) / seconds, peak)


Way = Callable[[np.ndarray[Any, Any]], Iterator[int]]


def read(ways: dict[str, Way], *, cases: int, rounds: int) -> list[Reading]:
    """Time the loaders in alternating rounds, so that disturbances affect all of them alike."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        order = np.random.default_rng((SEED, turn)).permutation(cases)
        for name, loader in ways.items():
            started = time.perf_counter()
            seen = sum(loader(order))
            seconds = time.perf_counter() - started
            if seen != cases:
                raise SystemExit(f"{name}: expected {cases} cases, got {seen}")
            if turn:
                rates[name].append(seen / seconds)
    return [Reading(name, tuple(values)) for name, values in rates.items()]


def report(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    load = record["load_average"]
    slab = " x ".join(map(str, record["slab"]))
    opening = (
        f"{record['cases']} cases of {slab}, {record['cores']} cores, load average "
        f"{load['before']:.1f} before and {load['after']:.1f} after, {record['date']}."
    )
    readings = {each["name"]: Reading(each["name"], each["rounds"]) for each in record["readings"]}
    reading = [
        [
            name,
            f"{each.median:.3g}",
            f"{min(each.rounds):.3g} to {max(each.rounds):.3g}",
            f"{each.times(readings[data_loaders.NIBABEL]):.2g}",
            f"{each.times(readings[data_loaders.MONAI]):.2g}",
        ]
        for name, each in readings.items()
    ]
    head = ("cases to tensors", "cases/s", "range", "to nibabel", "to MONAI")
    conversions = [
        [str(each["workers"]), f"{each['cases_per_second']:.3g}", f"{each['worker_mib']:.0f}"]
        for each in record["conversions"]
    ]
    convert_head = ("workers", "cases/s", "largest worker, MiB")
    peak = f"Largest Ray Data worker: {record['ray_data_worker_mib']:.0f} MiB resident."
    return "\n\n".join(
        [opening, table(head, reading), peak, "Conversion:", table(convert_head, conversions), ""]
    )


if __name__ == "__main__":
    if not MALLOC_ENV.items() <= os.environ.items():  # glibc reads them as a process starts
        os.execve(sys.executable, sys.orig_argv, os.environ | MALLOC_ENV)
    sys.exit(main())
