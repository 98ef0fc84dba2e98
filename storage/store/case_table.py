"""The case table: who is in a store, from which files, and where each slab lies in its source."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.errors import Exclusion
from storage.layout import SCHEMA, CovariateValue, StoreSpec
from storage.nifti.io import NiftiGeometry
from storage.preprocess.grid import SlabGrid

Split = Literal["train", "val", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unlabelled")


class ShardRow(NamedTuple):
    """Where a case lies: the name of its shard, and its place along the case axis there."""

    shard: str
    place: int


@dataclass(frozen=True)
class Case:
    """One subject in a store.

    `index` is its place in `Store.cases`, which are sorted by subject, and its name in a store's
    API: it counts for as long as a store is open, while `row` names the same voxels for ever, or
    none. `arm` is None and `arm_index` -1 where
    the arm is not known. `split` is `unlabelled` where a case cannot teach a forecast (no arm, or
    no NET2 mask at w096). `present` [session, channel] and `parcellation` say what it has;
    `intensity` are the raw values of each session's FLAIR that became -1 and 1.
    `digests` are the sha256 of its source files by their path in the BIDS folder.
    """

    index: int
    row: ShardRow
    subject: str
    arm: str | None
    arm_index: int
    trial: str | None
    split: Split
    covariates: Mapping[str, CovariateValue]
    grid: SlabGrid
    present: npt.NDArray[np.bool_] = field(compare=False)
    parcellation: bool
    intensity: Mapping[str, tuple[float, float]]
    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The sha256 that names this case's inputs, wherever the files lie."""
        lines = sorted(f"{digest} {path}" for path, digest in self.digests.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class CaseTable:
    """What `cases.json` holds.

    `inputs` is the digest of all that its cases were made from, `bids` the folder where that was.
    `seed` and `shares` (train, val, test) made the split. `shards` are the sha256 of the records of
    the shards that count, by name.
    """

    spec: StoreSpec
    inputs: str
    bids: str
    seed: int
    split_fractions: tuple[float, float, float]
    shards: Mapping[str, str]
    cases: tuple[Case, ...]
    excluded: tuple[Exclusion, ...]


def encode_table(table: CaseTable) -> bytes:
    """A case table as JSON, one case a line."""
    head = {
        "schema": SCHEMA,
        "spec": asdict(table.spec),
        "inputs": table.inputs,
        "bids": table.bids,
        "seed": table.seed,
        "shares": table.split_fractions,
        "shards": table.shards,
    }
    refused = ",\n".join(json.dumps(asdict(refusal)) for refusal in table.excluded)
    cases = ",\n".join(json.dumps(case_to_json(case), allow_nan=False) for case in table.cases)
    text = json.dumps(head)[:-1] + f', "refused": [\n{refused}], "cases": [\n{cases}]}}\n'
    return text.encode()


def decode_table(content: bytes) -> CaseTable:
    """The inverse of `encode_table`. Raises KeyError, TypeError or ValueError on other content."""
    table = json.loads(content)
    if table["schema"] != SCHEMA:
        raise ValueError(f"schema {table['schema']}")
    spec = {key: tuple(value) for key, value in table["spec"].items()}
    return CaseTable(
        spec=StoreSpec(**spec),
        inputs=table["inputs"],
        bids=table["bids"],
        seed=table["seed"],
        split_fractions=tuple(table["shares"]),
        shards=table["shards"],
        cases=tuple(_case(record) for record in table["cases"]),
        excluded=tuple(Exclusion(**record) for record in table["refused"]),
    )


def case_to_json(facts: Any) -> dict[str, Any]:
    """A case, or the facts of one, as JSON; `grid.slab_affine` is there for other readers."""
    record = asdict(facts) | {"present": facts.present.tolist()}
    record["grid"]["slab_affine"] = facts.grid.slab_affine
    return record


def case_from_json(record: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make again what `encode_fields` was given."""
    present = np.array(record["present"], bool)
    present.setflags(write=False)
    intensity = {session: tuple(limits) for session, limits in record["intensity"].items()}
    return record | {"grid": _grid(record["grid"]), "present": present, "intensity": intensity}


def _case(record: dict[str, Any]) -> Case:
    shard, place = record["row"]
    return Case(**case_from_json(record) | {"row": ShardRow(shard, place)})


def _grid(record: dict[str, Any]) -> SlabGrid:
    header = record["header"]
    qform = header["qform"]
    return SlabGrid(
        header=NiftiGeometry(
            **header
            | {
                "shape": tuple(header["shape"]),
                "affine": _rows(header["affine"]),
                "qform": None if qform is None else _rows(qform),
            }
        ),
        shape=tuple(record["shape"]),
        slab=tuple(record["slab"]),
        scale=tuple(record["scale"]),
        offset=tuple(record["offset"]),
    )


def _rows(matrix: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix)


def exclusions_tsv(refused: tuple[Exclusion, ...]) -> bytes:
    """The refusals as a table for people (`excluded.tsv`)."""
    rows = [("subject", "session", "kind", "reason", "path")]
    rows += [(r.subject, r.session or "n/a", r.kind, r.reason, r.path or "n/a") for r in refused]
    lines = ("\t".join(" ".join(cell.split()) for cell in row) for row in rows)
    return ("\n".join(lines) + "\n").encode()
