"""Compare codecs and chunk shapes on simulated cases: size, and processor time to write and read.

    PYTHONPATH=.:platform python tests/benchmarks/data/codecs.py \
        [--rounds 5] [--config FILE=CASES ...]

Every variant is one shard in memory, written and read through Zarr as conversion and training do.
Rounds alternate between variants. A figure is the median over rounds of the processor time of all
threads for one case: other work on the machine disturbs it less than elapsed time.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.storage import MemoryStore

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from lesioncast.simulation.settings import SimulationSettings
from storage import StoreSettings, pack_masks
from storage.preprocess.prepare import preprocess_subject
from storage.store.shards import CODECS
from storage.trial.dataset import scan_trial
from tests.benchmarks.data.simulated_cases import from_section, load_sections
from tests.benchmarks.data.tables import table

Array = npt.NDArray[Any]
Codecs = tuple[BytesBytesCodec, ...]

NAMES = ("flair", "masks", "parcellation")
SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
CONFIGS = ("jobs/configs/demo.yaml=64", "jobs/configs/paper.yaml=8")


def codec_variants() -> dict[str, Codecs]:
    """Return the codecs by name. The checksum is measured separately."""
    named: dict[str, Codecs] = {"none": ()}
    named |= {f"zstd {level}": (ZstdCodec(level=level),) for level in (1, 3, 9)}
    for kind, shuffle in itertools.product((("lz4", 5), ("zstd", 1), ("zstd", 5)), SHUFFLES):
        cname, level = kind
        blosc = BloscCodec(cname=cname, clevel=level, shuffle=shuffle)  # type: ignore[arg-type]
        named[f"blosc {cname} {level} {shuffle}"] = (blosc,)
    return named


@dataclass
class Figures:
    """Bytes per case, and milliseconds of processor time per case in each round."""

    size: float
    encode: list[float]
    decode: list[float]

    def row(self) -> list[str]:
        """Return the cells of a table row."""
        encode, decode = statistics.median(self.encode), statistics.median(self.decode)
        return [f"{self.size / 1024:.1f}", f"{encode:.2f}", f"{decode:.2f}"]


def simulate_arrays(config: Path, subjects: int) -> dict[str, Array]:
    """Return the arrays of simulated cases in the form in which a store holds them."""
    sections = load_sections(config)
    cohort = replace(from_section(SimulationSettings, sections["simulation"]), subjects=subjects)
    store = from_section(StoreSettings, sections["store"])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "bids")
        write_subjects(root, cohort, initialise_dataset(root, cohort))
        finalise_dataset(root, cohort)
        cases = [
            preprocess_subject(subject, root, settings=store, arms=PAPER_ARM_NAMES)[1]
            for subject in scan_trial(root, store.layout)
        ]
    return {
        "flair": np.stack([case.flair for case in cases]),
        "masks": np.stack([pack_masks(case.masks) for case in cases]),
        "parcellation": np.stack([case.parcellation for case in cases]),
    }


def write_shard(data: Array, codecs: Codecs, chunk: Sequence[int]) -> tuple[Any, int, float]:
    """Write `data` [case, ...] as one shard; return the array, its bytes and its seconds."""
    files: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(files),
        shape=data.shape,
        dtype=data.dtype,
        chunks=(1, *chunk),
        shards=data.shape,
        compressors=codecs or None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    started = time.process_time()
    array[:] = data
    taken = time.process_time() - started
    return array, sum(len(content.to_bytes()) for content in files.values()), taken


def read_seconds(array: Any, sessions: slice | None = None) -> float:
    """Return the seconds it takes to read every case of an array, one after the other."""
    started = time.process_time()
    for case in range(array.shape[0]):
        _ = array[case] if sessions is None else array[case, sessions]
    return time.process_time() - started


def compare(arrays: Mapping[str, Array], rounds: int) -> str:
    """Return a table of codecs for each array, with one chunk per case and session."""

    sections = []
    for name in NAMES:
        data = arrays[name]
        by_session = name != "parcellation"
        chunk = (1, *data.shape[2:]) if by_session else data.shape[1:]
        by_variant: dict[str, Figures] = {}
        for _, (variant, codecs) in itertools.product(range(rounds), codec_variants().items()):
            array, size, taken = write_shard(data, codecs, chunk)
            entry = by_variant.setdefault(variant, Figures(size / len(data), [], []))
            entry.encode.append(1e3 * taken / len(data))
            entry.decode.append(1e3 * read_seconds(array) / len(data))
        rows = [[variant, *figures.row()] for variant, figures in by_variant.items()]
        head = (f"{name}, {data.dtype}", "KiB a case", "write, ms", "read, ms")
        sections.append(table(head, rows))
    return "\n\n".join(sections)


def compare_chunks(flair: Array, rounds: int) -> str:
    """Return a table of chunk shapes for FLAIR: per case, or per case and session."""
    plain: Codecs = CODECS[:-1]
    layouts: dict[str, tuple[Codecs, tuple[int, ...]]] = {
        "a case": (plain, flair.shape[1:]),
        "a case and session": (plain, (1, *flair.shape[2:])),
        "a case and session, crc32c": (CODECS, (1, *flair.shape[2:])),
    }
    ways: dict[str, Callable[[Any], float]] = {
        "all": read_seconds,
        "w096": lambda array: read_seconds(array, slice(2, 3)),
    }
    times: dict[tuple[str, str], list[float]] = {}
    sizes: dict[str, float] = {}
    for _, (name, (codecs, chunk)) in itertools.product(range(rounds), layouts.items()):
        array, size, taken = write_shard(flair, codecs, chunk)
        sizes[name] = size / len(flair) / 1024
        times.setdefault((name, "write"), []).append(1e3 * taken / len(flair))
        for way, read in ways.items():
            times.setdefault((name, way), []).append(1e3 * read(array) / len(flair))
    rows = [
        [name, f"{sizes[name]:.1f}"]
        + [f"{statistics.median(times[name, way]):.2f}" for way in ("write", *ways)]
        for name in layouts
    ]
    head = ("chunk of FLAIR", "KiB a case", "write, ms", "read all, ms", "read w096, ms")
    return table(head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of each configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", action="append", help=f"default: {', '.join(CONFIGS)}")
    args = parser.parse_args(argv)
    for text in args.config or CONFIGS:
        config, _, subjects = text.partition("=")
        arrays = simulate_arrays(Path(config), int(subjects))
        shape = " x ".join(map(str, arrays["flair"].shape[2:]))
        print(f"### {subjects} cases of {shape}\n\n{compare(arrays, args.rounds)}\n", flush=True)
        print(f"{compare_chunks(arrays['flair'], args.rounds)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
