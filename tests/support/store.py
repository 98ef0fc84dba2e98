"""A store of cases that a test makes up, in one shard, without files that they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.backends.local import place_at
from storage.errors import Refusal
from storage.layout import CASE_TABLE, GROUP, StoreSpec, record_file
from storage.preprocess.prepare import Facts
from storage.store.case_table import Case, CaseTable, encode_table
from storage.store.shards import Outcome, empty_blocks, encode_root, sha256, write_shard

SHARD = "shard"  # its name; cases lie there in the order of their index


def table_of(
    spec: StoreSpec, cases: Sequence[Case], *, bids: str = "bids", refused: Sequence[Refusal] = ()
) -> CaseTable:
    """A table of these cases."""
    shares = (0.8, 0.1, 0.1)
    return CaseTable(spec, "inputs", bids, 0, shares, {SHARD: ""}, tuple(cases), tuple(refused))


def write_tiny_store(
    path: Path, table: CaseTable, blocks: Mapping[str, npt.NDArray[Any]] | None = None
) -> CaseTable:
    """Write the store of `table`, zeros where `blocks` says nothing; returns that table."""
    blocks = empty_blocks(len(table.cases), table.spec) | dict(blocks or {})
    place = place_at(path)
    names = [field.name for field in fields(Facts)]
    outcomes = [
        Outcome(c.subject, "inputs", c.digests, Facts(**{n: getattr(c, n) for n in names}))
        for c in table.cases
    ]
    write_shard(place, SHARD, outcomes=outcomes, blocks=blocks, spec=table.spec)
    table.shards[SHARD] = sha256(place.read(record_file(SHARD)))  # type: ignore[index]
    place.write(GROUP, encode_root())
    place.write(CASE_TABLE, encode_table(table))
    return table


def noise(cases: int, spec: StoreSpec, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Arrays in which every case, session and voxel differs from the next."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 2 if block.dtype == bool else 100, block.shape).astype(block.dtype)
        for name, block in empty_blocks(cases, spec).items()
    }
