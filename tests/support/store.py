"""Write a store of made-up cases in one shard, without source files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.backends.open import open_backend
from storage.digest import sha256_bytes
from storage.errors import Exclusion
from storage.layout import CASE_TABLE, ROOT_METADATA, StoreSpec, shard_record_path
from storage.preprocess.grid import place_slab
from storage.preprocess.prepare import CaseMetadata
from storage.settings import StoreSettings
from storage.store.case_table import Case, CaseTable, encode_table
from storage.store.shards import SubjectOutcome, allocate_arrays, encode_root, write_shard
from storage.trial.description import TrialDescription
from tests.support import bids

SHARD = "shard"  # name of the only shard; its cases are in the order of their index


def table_of(
    spec: StoreSpec,
    cases: Sequence[Case],
    *,
    bids: str = "bids",
    trial: TrialDescription = TrialDescription(),  # noqa: B008, it is frozen
    excluded: Sequence[Exclusion] = (),
) -> CaseTable:
    """Return a table of these cases."""
    return CaseTable(
        spec=spec,
        inputs="inputs",
        bids=bids,
        trial=trial,
        settings=StoreSettings(spec.slab, spec.spacing, resample=False),
        seed=0,
        shards={SHARD: ""},
        cases=tuple(cases),
        excluded=tuple(excluded),
    )


def write_tiny_store(
    path: Path, table: CaseTable, arrays: Mapping[str, npt.NDArray[Any]] | None = None
) -> CaseTable:
    """Write the store of `table` and return the table; arrays not in `blocks` are zero."""
    arrays = allocate_arrays(len(table.cases), table.spec) | dict(arrays or {})
    backend = open_backend(path)
    names = [field.name for field in fields(CaseMetadata)]
    outcomes = [
        SubjectOutcome(
            case.subject,
            "inputs",
            case.digests,
            CaseMetadata(**{name: getattr(case, name) for name in names}),
        )
        for case in table.cases
    ]
    write_shard(backend, SHARD, outcomes=outcomes, arrays=arrays, spec=table.spec)
    table.shards[SHARD] = sha256_bytes(backend.read(shard_record_path(SHARD)))  # type: ignore[index]
    backend.write(ROOT_METADATA, encode_root())
    backend.write(CASE_TABLE, encode_table(table))
    return table


def noise(cases: int, spec: StoreSpec, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return arrays in which every case, session and voxel differs from the next."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 2 if block.dtype == bool else 100, block.shape).astype(block.dtype)
        for name, block in allocate_arrays(cases, spec).items()
    }


def write_small_store(
    path: Path,
    slab: tuple[int, int, int] = (5, 12, 13),
    content: Callable[[int, StoreSpec], dict[str, npt.NDArray[Any]]] = noise,
) -> CaseTable:
    """Write a store of three cases and one exclusion; return its table."""
    settings = StoreSettings(slab, (3.0, 2.0, 2.0), resample=False)
    spec = StoreSpec(bids.ARMS, settings.slab, settings.spacing)
    volume = bids.volume_of(bids.head((9, 18, 14), 0), bids.Geometry())
    grid = place_slab(volume, settings=settings, brain=None)
    cases = [bids.case_of(grid, index=i, subject=f"sub-0{i}") for i in range(3)]
    exclusion = Exclusion("sub-09", "not finite", "expected ...")
    return write_tiny_store(path, table_of(spec, cases, excluded=[exclusion]), content(3, spec))
