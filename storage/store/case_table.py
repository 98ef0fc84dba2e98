"""The case table: subjects in a store, their source files and the position of each slab."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from storage.digest import sha256_bytes
from storage.errors import Exclusion
from storage.layout import (
    OUTCOME,
    SCHEMA,
    CovariateValue,
    StoreSpec,
    VisitSchedule,
    channel_index,
)
from storage.nifti.io import NiftiGeometry
from storage.preprocess.grid import SlabGrid
from storage.preprocess.lesions import LesionTransfer, lost_outcome
from storage.preprocess.visits import Intervals
from storage.settings import StoreSettings, settings_from_json
from storage.trial.description import TrialDescription

Split = Literal["train", "val", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "unlabelled")


class ShardRow(NamedTuple):
    """Permanent address of a case: the name of its shard and the position on its case axis."""

    shard: str
    position: int


@dataclass(frozen=True)
class Case:
    """One subject in a store."""

    #: Position in `Store.cases`, which are sorted by subject; valid only while this store is open.
    index: int
    #: Permanent address of the voxels.
    row: ShardRow
    subject: str
    #: Treatment arm, None if unknown.
    arm: str | None
    #: Position of the arm in `StoreSpec.arms`, -1 if unknown.
    arm_index: int
    #: Name of the trial, None if unknown.
    trial: str | None
    #: `unlabelled` if the case cannot train a forecast: no arm, no NET2 mask at outcome, or none of
    #: that mask's lesions on the slab.
    split: Split
    #: Other columns of the table of participants.
    covariates: Mapping[str, CovariateValue]
    #: Position of the slab in the current FLAIR.
    grid: SlabGrid
    #: Whether an input exists, bool [session, channel].
    present: npt.NDArray[np.bool_] = field(compare=False)
    #: Whether there is a parcellation.
    parcellation: bool
    #: Raw FLAIR values that became -1 and 1, by session.
    intensity: Mapping[str, tuple[float, float]]
    #: SHA-256 of the source files by their path in the BIDS folder.
    digests: Mapping[str, str]
    #: Path of each source file in the BIDS folder by its role, such as w048/flair.
    sources: Mapping[str, str]
    #: What became of the lesions of each mask on the way to the slab, by role such as w048/net2.
    lesions: Mapping[str, LesionTransfer]
    #: Days between its sessions.
    intervals: Intervals
    #: Sentences on its dates that a person should look at.
    notes: tuple[str, ...]
    #: Some voxels of the normalised FLAIR by session, by which copies of an image are found.
    fingerprints: Mapping[str, str]

    @property
    def has_outcome(self) -> bool:
        """Return whether NET2 at outcome is known: a mask whose lesions are not all lost."""
        return has_outcome(self.present, self.lesions)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all source files of this case by their roles, whatever their names.

        So an upload has the digest of the same subject in a store.
        """
        lines = sorted(f"{self.digests[path]} {role}" for role, path in self.sources.items())
        return sha256_bytes("\n".join(lines).encode())


@dataclass(frozen=True)
class CaseTable:
    """Content of `cases.json`."""

    #: Properties shared by all cases.
    spec: StoreSpec
    #: Digest of everything on which the cases depend.
    inputs: str
    #: Folder of the trial when it was converted; it may have moved since.
    bids: str
    #: What the trial said about itself when it was converted.
    trial: TrialDescription
    #: Settings of the conversion.
    settings: StoreSettings
    #: Seed of the split.
    seed: int
    #: SHA-256 of the records of the current shards, by name.
    shards: Mapping[str, str]
    cases: tuple[Case, ...]
    #: Subjects that are not in the store, with the reason.
    excluded: tuple[Exclusion, ...]


def has_outcome(present: npt.NDArray[np.bool_], lesions: Mapping[str, LesionTransfer]) -> bool:
    """Return `Case.has_outcome` of a case with these inputs and lesions."""
    return bool(present[channel_index(f"{OUTCOME}/net2")]) and lost_outcome(lesions) is None


def encode_table(table: CaseTable) -> bytes:
    """Return a case table as JSON with one case a line."""
    head = {
        "schema": SCHEMA,
        "spec": asdict(table.spec),
        "inputs": table.inputs,
        "bids": table.bids,
        "trial": asdict(table.trial),
        "settings": asdict(table.settings),
        "seed": table.seed,
        "shards": table.shards,
    }
    excluded = ",\n".join(json.dumps(asdict(exclusion)) for exclusion in table.excluded)
    cases = ",\n".join(json.dumps(case_to_json(case), allow_nan=False) for case in table.cases)
    text = json.dumps(head)[:-1] + f', "excluded": [\n{excluded}], "cases": [\n{cases}]}}\n'
    return text.encode()


def decode_table(content: bytes) -> CaseTable:
    """Parse the output of `encode_table`. Raises KeyError, TypeError or ValueError otherwise."""
    table = json.loads(content)
    if table["schema"] != SCHEMA:
        raise ValueError(f"schema {table['schema']}")
    return CaseTable(
        spec=_spec(table["spec"]),
        inputs=table["inputs"],
        bids=table["bids"],
        trial=TrialDescription(**table["trial"]),
        settings=settings_from_json(table["settings"]),
        seed=table["seed"],
        shards=table["shards"],
        cases=tuple(_case(record) for record in table["cases"]),
        excluded=tuple(Exclusion(**record) for record in table["excluded"]),
    )


def _spec(record: dict[str, Any]) -> StoreSpec:
    visits = VisitSchedule(**{key: tuple(value) for key, value in record["visits"].items()})
    fields = {key: tuple(value) for key, value in record.items() if key != "visits"}
    return StoreSpec(**fields, visits=visits)


def case_to_json(case: Any) -> dict[str, Any]:
    """Return a case or its metadata as JSON.

    `grid.slab_affine` can be derived; it is there for readers in other languages. Numbers of
    lesions that are 0 are left out.
    """
    record = asdict(case) | {"present": case.present.tolist()}
    record["grid"]["slab_affine"] = case.grid.slab_affine
    record["lesions"] = {
        role: {name: value for name, value in vars(transfer).items() if value}
        for role, transfer in case.lesions.items()
    }
    return record


def case_from_json(record: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of the object that `case_to_json` encoded."""
    present = np.array(record["present"], bool)
    present.setflags(write=False)  # cases are frozen
    intensity = {session: tuple(limits) for session, limits in record["intensity"].items()}
    return record | {
        "grid": _grid(record["grid"]),
        "present": present,
        "intensity": intensity,
        "lesions": {role: LesionTransfer(**numbers) for role, numbers in record["lesions"].items()},
        "intervals": Intervals(**record["intervals"]),
        "notes": tuple(record["notes"]),
    }


def _case(record: dict[str, Any]) -> Case:
    shard, position = record["row"]
    return Case(**case_from_json(record) | {"row": ShardRow(shard, position)})


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


def exclusions_tsv(excluded: tuple[Exclusion, ...]) -> bytes:
    """Return the exclusions as the content of `excluded.tsv`."""
    rows = [("subject", "session", "kind", "reason", "path")]
    rows += [
        (
            exclusion.subject,
            exclusion.session or "n/a",
            exclusion.kind,
            exclusion.reason,
            exclusion.path or "n/a",
        )
        for exclusion in excluded
    ]
    lines = ("\t".join(" ".join(cell.split()) for cell in row) for row in rows)
    return ("\n".join(lines) + "\n").encode()
