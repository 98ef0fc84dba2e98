"""Compare reading the cases of a store directly with reading them through zarr-python.

    PYTHONPATH=.:platform python tests/benchmarks/data/store_reads.py --store STORE [--rounds 5]

Each round reads every array of all cases, one case after the other, in a random order of its own:
once directly and once through zarr-python, which of them first by turns. The files are in the page
cache, because both read them once before. A figure is the median over rounds of the processor time
of all threads for one case. Ratios are taken within a round. Other work on the machine disturbs
both less than elapsed time, which is printed too.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from storage import open_store
from storage.layout import SHARDS
from storage.store.array_reader import ShardArray, ShardedArray, open_arrays, read_rows
from storage.store.case_table import ShardRow
from storage.store.zarr_shard import open_zarr_shard
from tests.benchmarks.data.tables import table

SEED = 0
HEAD = ("way", "CPU ms a case", "range", "ms a case", "range", "CPU of zarr-python / its own")


class ThroughZarr(ShardedArray):
    """Array whose shards zarr-python reads, wherever they lie."""

    def of_shard(self, shard: str) -> ShardArray:
        if shard not in self._opened:
            store = self.backend.zarr_store()
            self._opened[shard] = open_zarr_shard(store, f"{SHARDS}/{shard}/{self.name}")
        return self._opened[shard]


@dataclass(frozen=True)
class Way:
    """One way to read, with the milliseconds a case of each round."""

    name: str
    arrays: Sequence[ShardedArray]
    processor: list[float] = field(default_factory=list)
    elapsed: list[float] = field(default_factory=list)

    def read(self, rows: Sequence[ShardRow]) -> None:
        """Read the rows one by one and note the time a case."""
        elapsed, processor = time.perf_counter(), time.process_time()
        for row in rows:
            for array in self.arrays:
                read_rows(array, [row])
        self.processor.append((time.process_time() - processor) * 1e3 / len(rows))
        self.elapsed.append((time.perf_counter() - elapsed) * 1e3 / len(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    store = open_store(args.store)
    rows = [case.row for case in store.cases]
    direct, through_zarr = compare(args.store, rows, rounds=args.rounds)
    slab = " x ".join(map(str, store.spec.slab))
    load = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end"
    print(
        f"{len(rows)} cases of {slab}, {args.rounds} rounds, {load}, {time.strftime('%Y-%m-%d')}."
    )
    print()
    print(table(HEAD, [line(way, through_zarr) for way in (direct, through_zarr)]))
    return 0


def compare(path: Path, rows: Sequence[ShardRow], *, rounds: int) -> tuple[Way, Way]:
    """Return the times of reading directly and through zarr-python."""
    arrays = list(open_arrays(path).values())
    direct = Way("directly", arrays)
    through_zarr = Way(
        "through zarr-python", [ThroughZarr(array.backend, array.name) for array in arrays]
    )
    for turn in range(rounds + 1):
        order = np.random.default_rng((SEED, turn)).permutation(len(rows))
        ways = (direct, through_zarr) if turn % 2 else (through_zarr, direct)
        for way in ways:
            way.read([rows[place] for place in order])
    for way in (direct, through_zarr):  # the first round fills caches
        del way.processor[0], way.elapsed[0]
    return direct, through_zarr


def line(way: Way, reference: Way) -> list[str]:
    """Return the cells of a way's row."""
    ratios = [other / own for own, other in zip(way.processor, reference.processor, strict=True)]
    return [
        way.name,
        f"{statistics.median(way.processor):.2f}",
        spread(way.processor),
        f"{statistics.median(way.elapsed):.2f}",
        spread(way.elapsed),
        f"{statistics.median(ratios):.2f} ({spread(ratios)})",
    ]


def spread(values: Sequence[float]) -> str:
    """Return the least and the largest value."""
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    sys.exit(main())
