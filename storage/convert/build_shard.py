"""One shard of a conversion, from its subjects' files or from the shards that hold them already."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.backends.backend import Location
from storage.backends.local import open_backend
from storage.convert.plan import PlannedSubject, Shard
from storage.errors import CaseError, Exclusion, StorageError
from storage.layout import StoreSpec, pack_masks
from storage.preprocess.prepare import CaseArrays, CaseMetadata, preprocess_subject
from storage.settings import StoreSettings
from storage.store.array_reader import open_arrays, read_rows
from storage.store.shards import SubjectOutcome, allocate_arrays, write_shard
from storage.trial.dataset import TrialSubject

Views = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ShardTask:
    """The work of one task: a shard that is to be at `path`. Two tasks for one write the same."""

    shard: Shard
    path: Location
    bids: Path
    spec: StoreSpec
    settings: StoreSettings


def build_shard(build: ShardTask) -> int:
    """Make a shard; the number of its subjects.

    Raises StorageError where it cannot be written, or where a file is no longer what was planned.
    """
    members = build.shard.members
    blocks = allocate_arrays(len(members), build.spec)
    outcomes: list[SubjectOutcome] = []
    cases = 0
    for member in members:
        views = {name: block[cases] for name, block in blocks.items()}
        outcomes.append(_copy(member, build, views) or _convert(member, build, views))
        cases += isinstance(outcomes[-1].result, CaseMetadata)
    blocks = {name: block[:cases] for name, block in blocks.items()}
    place = open_backend(build.path)
    write_shard(place, build.shard.name, outcomes=outcomes, blocks=blocks, spec=build.spec)
    return len(members)


def _copy(member: PlannedSubject, build: ShardTask, views: Views) -> SubjectOutcome | None:
    """A subject that is in the store already, from there."""
    if member.known is None:
        return None
    outcome, row = member.known
    if row is not None:
        for name, array in open_arrays(build.path).items():
            views[name][...] = read_rows(array, [row])[0]
    return outcome


def _convert(member: PlannedSubject, build: ShardTask, views: Views) -> SubjectOutcome:
    result = _prepare(member.subject, build, views)
    if isinstance(result, CaseMetadata) and not set(result.digests.values()) <= set(
        member.sources.values()
    ):
        raise StorageError(
            f"{build.bids}: expected the files of {member.subject.name} to stay as they were, got "
            "others while they were converted; run the same command again."
        )
    return SubjectOutcome(member.subject.name, member.inputs, member.sources, result)


def _prepare(subject: TrialSubject, build: ShardTask, views: Views) -> CaseMetadata | Exclusion:
    try:
        facts, arrays = preprocess_subject(
            subject, build.bids, settings=build.settings, arms=build.spec.arms
        )
    except CaseError as error:
        return _with_relative_path(build.bids, error.refusal)
    for name, block in _packed_arrays(arrays).items():
        views[name][...] = block
    return facts


def _with_relative_path(bids: Path, refusal: Exclusion) -> Exclusion:
    """A refusal with the path below the BIDS folder: what a shard says holds wherever that lies."""
    path = Path(refusal.path)
    inside = path.is_relative_to(bids)
    return replace(refusal, path=path.relative_to(bids).as_posix()) if inside else refusal


def _packed_arrays(arrays: CaseArrays) -> dict[str, np.ndarray[Any, Any]]:
    return {**vars(arrays), "masks": pack_masks(arrays.masks)}
