"""Plan a conversion: which subjects go into which shard. Needs no cluster.

A shard is named by the digest of its inputs: the settings, and its subjects with their rows of
participants.tsv and the digests of their files. A shard that exists under its name is therefore the
one that would be built.

A shard keeps its subjects as long as none of these inputs changes. New, changed and leftover
subjects go into new shards, together with the subjects of the one shard that is not full.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from storage.backends.backend import Location, is_url
from storage.digest import sha256_bytes
from storage.layout import SCHEMA, StoreSpec
from storage.settings import StoreSettings
from storage.store.case_table import ShardRow
from storage.store.shards import ShardRecord, SubjectOutcome
from storage.trial.dataset import SourceFile, TrialSubject, scan_trial
from storage.trial.description import TrialDescription, read_description

# Increased when the preparation of a subject records or refuses more than before, so that the next
# conversion prepares the subjects of an older store again.
_PREPARATION = 3


@dataclass(frozen=True)
class ConversionPlan:
    """A trial and the store at `path` into which it is converted; `seed` decides the split."""

    bids: Path
    path: Location
    subjects: tuple[TrialSubject, ...]
    settings: StoreSettings
    arms: tuple[str, ...]
    seed: int
    description: TrialDescription

    @property
    def spec(self) -> StoreSpec:
        settings = self.settings
        return StoreSpec(self.arms, settings.slab, settings.spacing, settings.layout.visits)

    @property
    def files(self) -> list[str]:
        """Return every source file, as a path below the BIDS folder."""
        return [
            self.relative_path(source) for subject in self.subjects for source in subject.sources
        ]

    def relative_path(self, source: SourceFile) -> str:
        """Return the path of a source file below the BIDS folder."""
        return source.path.relative_to(self.bids).as_posix()


def plan_conversion(
    bids: Path, path: Location, *, settings: StoreSettings, arms: tuple[str, ...], seed: int
) -> ConversionPlan:
    """Scan the BIDS folder `bids` without reading its images.

    Raises StorageError if it is not a BIDS folder with subjects, or if its description is damaged.
    """
    bids = bids.resolve()
    path = path if is_url(path) else Path(path).resolve()
    return ConversionPlan(
        bids,
        path,
        tuple(scan_trial(bids, settings.layout)),
        settings,
        arms,
        seed,
        read_description(bids),
    )


@dataclass(frozen=True)
class PlannedSubject:
    """A subject of a shard."""

    subject: TrialSubject
    #: Digest of everything on which its case depends.
    inputs: str
    #: SHA-256 of its files by their path in the BIDS folder.
    sources: Mapping[str, str]
    #: Its outcome in a shard of the store and the row of its case; None if it must be preprocessed.
    existing: tuple[SubjectOutcome, ShardRow | None] | None = None


@dataclass(frozen=True)
class Shard:
    """A shard of the planned store; it is built unless the store has it already."""

    name: str
    members: tuple[PlannedSubject, ...]


def plan_shards(
    plan: ConversionPlan, digests: Mapping[str, str], *, existing: Mapping[str, ShardRecord]
) -> list[Shard]:
    """Return all shards of the store, sorted by their first subject.

    `existing` are complete shards to keep or to copy from; those of the current case table come
    first.
    """
    size = plan.settings.cases_per_shard
    members = {member.subject.name: member for member in _members(plan, digests)}
    reusable = _reusable_shards(existing, members)
    # If nobody is new or changed, the shards stay as they are, even the one that is not full.
    # Otherwise that one is filled up; full shards are never touched.
    complete = _subjects_in(reusable) >= members.keys()
    kept = reusable if complete and _well_filled(reusable, size) else _full(reusable, size)
    outcomes = _outcomes_by_inputs(existing)
    remaining = [
        replace(members[name], existing=outcomes.get(members[name].inputs))
        for name in sorted(members.keys() - _subjects_in(kept))
    ]
    groups = [[members[outcome.subject] for outcome in record.outcomes] for record in kept.values()]
    groups += [remaining[first : first + size] for first in range(0, len(remaining), size)]
    groups.sort(key=lambda group: group[0].subject.name)
    return [Shard(_shard_name(member.inputs for member in group), tuple(group)) for group in groups]


def _members(plan: ConversionPlan, digests: Mapping[str, str]) -> Iterable[PlannedSubject]:
    settings = _settings_that_affect_cases(plan)
    for subject in plan.subjects:
        sources = {name: digests[name] for name in map(plan.relative_path, subject.sources)}
        roles = [
            (source.session, source.channel, plan.relative_path(source))
            for source in subject.sources
        ]
        content = [SCHEMA, _PREPARATION, settings, subject.name, subject.rows, roles, sources]
        content.append(asdict(subject.dates))
        yield PlannedSubject(subject, _digest(content), sources)


def _settings_that_affect_cases(plan: ConversionPlan) -> list[Any]:
    """Return the settings on which a case depends; splits and shard sizes do not affect it."""
    without_effect = ("split_fractions", "cases_per_shard")
    settings = asdict(plan.settings)
    return [{key: value for key, value in settings.items() if key not in without_effect}, plan.arms]


def _reusable_shards(
    existing: Mapping[str, ShardRecord], members: Mapping[str, PlannedSubject]
) -> dict[str, ShardRecord]:
    """Return the shards whose subjects are all unchanged, with each subject in one of them only."""
    reusable: dict[str, ShardRecord] = {}
    unclaimed = {name: member.inputs for name, member in members.items()}
    for shard, record in existing.items():
        if all(unclaimed.get(outcome.subject) == outcome.inputs for outcome in record.outcomes):
            reusable[shard] = record
            for outcome in record.outcomes:
                del unclaimed[outcome.subject]
    return reusable


def _full(shards: dict[str, ShardRecord], size: int) -> dict[str, ShardRecord]:
    """Return the shards that hold `size` subjects."""
    return {name: record for name, record in shards.items() if len(record.outcomes) == size}


def _well_filled(shards: dict[str, ShardRecord], size: int) -> bool:
    """Return whether all shards are full except at most one smaller shard."""
    other_sizes = [
        len(record.outcomes) for record in shards.values() if len(record.outcomes) != size
    ]
    return not other_sizes or (len(other_sizes) == 1 and other_sizes[0] < size)


def _subjects_in(shards: Mapping[str, ShardRecord]) -> set[str]:
    return {outcome.subject for record in shards.values() for outcome in record.outcomes}


def _outcomes_by_inputs(
    existing: Mapping[str, ShardRecord],
) -> dict[str, tuple[SubjectOutcome, ShardRow | None]]:
    """Return each subject's outcome and row by the digest of its inputs."""
    outcomes: dict[str, tuple[SubjectOutcome, ShardRow | None]] = {}
    for shard, record in existing.items():
        outcomes |= {outcome.inputs: (outcome, None) for outcome in record.outcomes}
        outcomes |= {outcome.inputs: (outcome, row) for outcome, row in record.rows(shard)}
    return outcomes


def _shard_name(inputs: Iterable[str]) -> str:
    return _digest(list(inputs))[:20]


def _digest(content: Sequence[Any]) -> str:
    return sha256_bytes(json.dumps(content, sort_keys=True).encode())


def inputs_digest(shards: Iterable[Shard]) -> str:
    """Return the digest of all inputs of these shards, whatever the shard of each subject."""
    return _digest(sorted(member.inputs for shard in shards for member in shard.members))
