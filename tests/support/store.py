"""A store of cases that a test makes up, in one shard, without files that they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.backends.local import open_backend
from storage.errors import Exclusion
from storage.layout import CASE_TABLE, ROOT_METADATA, StoreSpec, shard_record_path
from storage.preprocess.prepare import CaseMetadata
from storage.store.case_table import Case, CaseTable, encode_table
from storage.store.shards import SubjectOutcome, allocate_arrays, encode_root, sha256, write_shard

SHARD = "shard"  # its name; cases lie there in the order of their index


def table_of(
    spec: StoreSpec, cases: Sequence[Case], *, bids: str = "bids", refused: Sequence[Exclusion] = ()
) -> CaseTable:
    """A table of these cases."""
    shares = (0.8, 0.1, 0.1)
    return CaseTable(spec, "inputs", bids, 0, shares, {SHARD: ""}, tuple(cases), tuple(refused))


def write_tiny_store(
    path: Path, table: CaseTable, blocks: Mapping[str, npt.NDArray[Any]] | None = None
) -> CaseTable:
    """Write the store of `table`, zeros where `blocks` says nothing; returns that table."""
    blocks = allocate_arrays(len(table.cases), table.spec) | dict(blocks or {})
    place = open_backend(path)
    names = [field.name for field in fields(CaseMetadata)]
    outcomes = [
        SubjectOutcome(
            c.subject, "inputs", c.digests, CaseMetadata(**{n: getattr(c, n) for n in names})
        )
        for c in table.cases
    ]
    write_shard(place, SHARD, outcomes=outcomes, blocks=blocks, spec=table.spec)
    table.shards[SHARD] = sha256(place.read(shard_record_path(SHARD)))  # type: ignore[index]
    place.write(ROOT_METADATA, encode_root())
    place.write(CASE_TABLE, encode_table(table))
    return table


def noise(cases: int, spec: StoreSpec, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Arrays in which every case, session and voxel differs from the next."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 2 if block.dtype == bool else 100, block.shape).astype(block.dtype)
        for name, block in allocate_arrays(cases, spec).items()
    }
