"""What a conversion is to do: which subjects go into which shard. Needs no cluster.

A shard is named by the digest of what it is made from: settings, and its subjects with their rows
of participants.tsv and the digests of their files. So a shard that is there under its name is the
one that would be made. Shards keep their subjects for as long as none of these changes; who is new,
changed or left over fills new shards, together with who is in the one shard that is not full.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from storage.backends.backend import Location, is_url
from storage.layout import SCHEMA, StoreSpec
from storage.settings import StoreSettings
from storage.store.case_table import ShardRow
from storage.store.shards import ShardRecord, SubjectOutcome
from storage.trial.dataset import SourceFile, TrialSubject, scan_trial


@dataclass(frozen=True)
class ConversionPlan:
    """A trial on its way to a store at `path`; `seed` decides the split."""

    bids: Path
    path: Location
    subjects: tuple[TrialSubject, ...]
    settings: StoreSettings
    arms: tuple[str, ...]
    seed: int

    @property
    def spec(self) -> StoreSpec:
        return StoreSpec(self.arms, self.settings.slab, self.settings.spacing)

    @property
    def files(self) -> list[str]:
        """Every source file, as a path below the BIDS folder."""
        return [self.name_of(source) for subject in self.subjects for source in subject.sources]

    def name_of(self, source: SourceFile) -> str:
        """The path of a source below the BIDS folder."""
        return source.path.relative_to(self.bids).as_posix()


def plan_conversion(
    bids: Path, path: Location, *, settings: StoreSettings, arms: tuple[str, ...], seed: int
) -> ConversionPlan:
    """Look through the BIDS folder `bids`; its images are not read yet.

    Raises StorageError where it is no BIDS folder with subjects.
    """
    bids = bids.resolve()
    path = path if is_url(path) else Path(path).resolve()
    return ConversionPlan(
        bids, path, tuple(scan_trial(bids, settings.layout)), settings, arms, seed
    )


@dataclass(frozen=True)
class PlannedSubject:
    """A subject of a shard; `inputs` is the digest of all that its case is made from.

    `known` says what became of it in a shard that is there already, with the row of its case.
    """

    subject: TrialSubject
    inputs: str
    sources: Mapping[str, str]
    known: tuple[SubjectOutcome, ShardRow | None] | None = None


@dataclass(frozen=True)
class Shard:
    """The shard of that name, to be made unless it is there."""

    name: str
    members: tuple[PlannedSubject, ...]


def plan_shards(
    conversion: ConversionPlan, digests: Mapping[str, str], *, there: Mapping[str, ShardRecord]
) -> list[Shard]:
    """All shards of the store, by their first subject.

    `there` are whole shards to keep or to copy from, those of the store as it is before others.
    """
    size = conversion.settings.cases_per_shard
    members = {member.subject.name: member for member in _members(conversion, digests)}
    standing = _reusable_shards(there, members)
    complete = _subjects_in(standing) >= members.keys()
    kept = standing if complete and _well_filled(standing, size) else _full(standing, size)
    known = _known_outcomes(there)
    left = [
        replace(members[name], known=known.get(members[name].inputs))
        for name in sorted(members.keys() - _subjects_in(kept))
    ]
    parts = [[members[o.subject] for o in record.outcomes] for record in kept.values()]
    parts += [left[first : first + size] for first in range(0, len(left), size)]
    parts.sort(key=lambda part: part[0].subject.name)
    return [Shard(_name(member.inputs for member in part), tuple(part)) for part in parts]


def _members(conversion: ConversionPlan, digests: Mapping[str, str]) -> Iterable[PlannedSubject]:
    settings = _settings_that_affect_cases(conversion)
    for subject in conversion.subjects:
        sources = {name: digests[name] for name in map(conversion.name_of, subject.sources)}
        roles = [(s.session, s.channel, conversion.name_of(s)) for s in subject.sources]
        content = [SCHEMA, settings, subject.name, subject.rows, roles, sources]
        yield PlannedSubject(subject, _digest(content), sources)


def _settings_that_affect_cases(conversion: ConversionPlan) -> list[Any]:
    """The settings that a case depends on; how cases are split and filed comes later."""
    later = ("split_fractions", "cases_per_shard")
    settings = asdict(conversion.settings)
    return [{key: value for key, value in settings.items() if key not in later}, conversion.arms]


def _reusable_shards(
    there: Mapping[str, ShardRecord], members: Mapping[str, PlannedSubject]
) -> dict[str, ShardRecord]:
    """The shards whose subjects are all as they were, and each in one of them only."""
    standing: dict[str, ShardRecord] = {}
    wanted = {name: member.inputs for name, member in members.items()}
    for shard, record in there.items():
        if all(wanted.get(outcome.subject) == outcome.inputs for outcome in record.outcomes):
            standing[shard] = record
            for outcome in record.outcomes:
                del wanted[outcome.subject]
    return standing


def _full(shards: dict[str, ShardRecord], size: int) -> dict[str, ShardRecord]:
    return {name: record for name, record in shards.items() if len(record.outcomes) == size}


def _well_filled(shards: dict[str, ShardRecord], size: int) -> bool:
    """Whether all are full but one, which is not fuller."""
    odd = [len(record.outcomes) for record in shards.values() if len(record.outcomes) != size]
    return not odd or (len(odd) == 1 and odd[0] < size)


def _subjects_in(shards: Mapping[str, ShardRecord]) -> set[str]:
    return {outcome.subject for record in shards.values() for outcome in record.outcomes}


def _known_outcomes(
    there: Mapping[str, ShardRecord],
) -> dict[str, tuple[SubjectOutcome, ShardRow | None]]:
    """What became of each subject by the digest of its inputs."""
    outcomes: dict[str, tuple[SubjectOutcome, ShardRow | None]] = {}
    for shard, record in there.items():
        outcomes |= {outcome.inputs: (outcome, None) for outcome in record.outcomes}
        outcomes |= {outcome.inputs: (outcome, row) for outcome, row in record.rows(shard)}
    return outcomes


def _name(inputs: Iterable[str]) -> str:
    return _digest(list(inputs))[:20]


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def inputs_digest(shards: Iterable[Shard]) -> str:
    """The digest of all that the cases of these shards are made from, however they are filed."""
    return _digest(sorted(member.inputs for shard in shards for member in shard.members))
