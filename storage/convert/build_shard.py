"""Build one shard of a store from source files or from existing shards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.backends.backend import Location
from storage.backends.open import open_backend
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
    """Work of one task: build `shard` in the store at `path`.

    Two tasks for one shard write the same bytes, so Ray may run a task again.
    """

    shard: Shard
    path: Location
    bids: Path
    spec: StoreSpec
    settings: StoreSettings


def build_shard(task: ShardTask) -> int:
    """Build and write a shard, and return the number of its subjects.

    Raises StorageError if it cannot be written, or if a file changed since the conversion was
    planned.
    """
    members = task.shard.members
    arrays = allocate_arrays(len(members), task.spec)
    outcomes: list[SubjectOutcome] = []
    n_cases = 0
    for member in members:
        case_arrays = {name: array[n_cases] for name, array in arrays.items()}
        outcomes.append(
            _copy_existing(member, task, case_arrays) or _convert(member, task, case_arrays)
        )
        n_cases += isinstance(outcomes[-1].result, CaseMetadata)
    arrays = {name: array[:n_cases] for name, array in arrays.items()}
    backend = open_backend(task.path)
    write_shard(backend, task.shard.name, outcomes=outcomes, arrays=arrays, spec=task.spec)
    return len(members)


def _copy_existing(member: PlannedSubject, task: ShardTask, views: Views) -> SubjectOutcome | None:
    """Copy a subject from the store, None if the store does not have it."""
    if member.existing is None:
        return None
    outcome, row = member.existing
    if row is not None:
        for name, array in open_arrays(task.path).items():
            views[name][...] = read_rows(array, [row])[0]
    return outcome


def _convert(member: PlannedSubject, task: ShardTask, views: Views) -> SubjectOutcome:
    """Preprocess a subject from its files."""
    result = _prepare(member.subject, task, views)
    # The shard's name was derived from the planned digests, so its content must match them.
    if isinstance(result, CaseMetadata) and not set(result.digests.values()) <= set(
        member.sources.values()
    ):
        raise StorageError(
            f"{task.bids}: expected unchanged files of {member.subject.name}, got files that "
            "changed during the conversion; run the same command again."
        )
    return SubjectOutcome(member.subject.name, member.inputs, member.sources, result)


def _prepare(subject: TrialSubject, task: ShardTask, views: Views) -> CaseMetadata | Exclusion:
    """Return the metadata of a case and fill `views`, or return why the subject is excluded."""
    try:
        metadata, arrays = preprocess_subject(
            subject, task.bids, settings=task.settings, arms=task.spec.arms
        )
    except CaseError as error:
        return _with_relative_path(task.bids, error.exclusion)
    for name, packed in _packed_arrays(arrays).items():
        views[name][...] = packed
    return metadata


def _with_relative_path(bids: Path, exclusion: Exclusion) -> Exclusion:
    """Return an exclusion with the path relative to the BIDS folder.

    The bytes of a shard must not depend on where the trial lies.
    """
    path = Path(exclusion.path)
    inside = path.is_relative_to(bids)
    return replace(exclusion, path=path.relative_to(bids).as_posix()) if inside else exclusion


def _packed_arrays(arrays: CaseArrays) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a case as a shard stores them."""
    return {**vars(arrays), "masks": pack_masks(arrays.masks)}
