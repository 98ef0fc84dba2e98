"""The case table: who is in a store, from which files, and where each slab lies in its source."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from storage.errors import Refusal
from storage.grid import Grid
from storage.layout import REFUSED_TABLE
from storage.nifti import Header, write_atomic

Split = Literal["train", "val", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unlabelled")

Covariate = str | int | float | None


@dataclass(frozen=True)
class Case:
    """One subject in a store.

    `index` is its place in `Store.cases` and its name in a store's API; `row` is its place in the
    arrays, where the rows of refused subjects stay empty. `arm` is None and `arm_index` -1 where
    the arm is not known. `split` is `unlabelled` where a case cannot teach a forecast (no arm, or
    no NET2 mask at w096). `present` [session, channel] and `parcellation` say what it has;
    `intensity` are the raw values of each session's FLAIR that became -1 and 1.
    `digests` are the sha256 of its source files by their path in the BIDS folder.
    """

    index: int
    row: int
    subject: str
    arm: str | None
    arm_index: int
    trial: str | None
    split: Split
    covariates: Mapping[str, Covariate]
    grid: Grid
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
    """What `cases.json` holds; `inputs` is the digest of settings and sources that it came from."""

    inputs: str
    bids: str
    cases: tuple[Case, ...]
    refused: tuple[Refusal, ...]


def encode_table(table: CaseTable) -> bytes:
    """A case table as JSON, one case a line."""
    head = {"inputs": table.inputs, "bids": table.bids}
    refused = ",\n".join(json.dumps(asdict(refusal)) for refusal in table.refused)
    cases = ",\n".join(json.dumps(_record(case), allow_nan=False) for case in table.cases)
    text = json.dumps(head)[:-1] + f', "refused": [\n{refused}], "cases": [\n{cases}]}}\n'
    return text.encode()


def decode_table(content: bytes) -> CaseTable:
    """The inverse of `encode_table`. Raises KeyError, TypeError or ValueError on other content."""
    table = json.loads(content)
    return CaseTable(
        inputs=table["inputs"],
        bids=table["bids"],
        cases=tuple(_case(record) for record in table["cases"]),
        refused=tuple(Refusal(**record) for record in table["refused"]),
    )


def _record(case: Case) -> dict[str, Any]:
    record = asdict(case) | {"present": case.present.tolist()}
    # For readers in other languages; here it follows from the rest.
    record["grid"]["slab_affine"] = case.grid.slab_affine
    return record


def _case(record: dict[str, Any]) -> Case:
    present = np.array(record["present"], bool)
    present.setflags(write=False)
    intensity = {session: tuple(limits) for session, limits in record["intensity"].items()}
    return Case(
        **record | {"grid": _grid(record["grid"]), "present": present, "intensity": intensity}
    )


def _grid(record: dict[str, Any]) -> Grid:
    header = record["header"]
    qform = header["qform"]
    return Grid(
        header=Header(
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


def write_refusals(refused: tuple[Refusal, ...], folder: Path) -> None:
    """Write the refusals as a table for people, beside the arrays."""
    rows = [("subject", "session", "kind", "reason", "path")]
    rows += [(r.subject, r.session or "n/a", r.kind, r.reason, r.path or "n/a") for r in refused]
    lines = ("\t".join(" ".join(cell.split()) for cell in row) for row in rows)
    write_atomic(folder / REFUSED_TABLE, ("\n".join(lines) + "\n").encode())
