"""Scan a trial on disk: its subjects with their files and rows of the table of participants."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.errors import CaseError, Exclusion, StorageError
from storage.layout import BASELINE, CURRENT, MASKS, SESSIONS
from storage.settings import TrialLayout
from storage.trial.date_files import find_date_tables, read_dates
from storage.trial.dates import StatedDates
from storage.trial.participants import read_participants, strip_sub_prefix, subject_id
from storage.trial.path_patterns import find_files, find_folders

REQUIRED_SESSIONS = (BASELINE, CURRENT)  # a case needs their FLAIR
REFERENCE_FLAIR = f"{CURRENT}/flair"  # defines the subject's grid, also that of forecasts
# Read once a subject, from the current session.
SUBJECT_LEVEL_CHANNELS = ("parcellation", "brain_mask")


@dataclass(frozen=True)
class SourceFile:
    """One input file of a subject.

    `session` is its role in the store and `label` the trial's own name of it, if that differs.
    """

    subject: str
    session: str
    channel: str
    path: Path
    label: str = ""

    @property
    def visit(self) -> str:
        """Return the session as people know it."""
        return self.label or self.session

    def rejection(self, kind: str, reason: str) -> CaseError:
        """Return the error that excludes the subject because of this file."""
        return CaseError(Exclusion(self.subject, kind, reason, self.session, str(self.path)))


@dataclass(frozen=True)
class TrialSubject:
    """A participant; `name` is the BIDS id (`sub-0001`), `rows` its rows of participants.tsv.

    `labels` are the names of its files and folders. Several labels mean that different patients
    would get the same id. `other_roles` are further roles of its files, of this subject or another.
    `dates` is what its tables and sidecars state about its sessions.
    """

    name: str
    labels: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    sources: tuple[SourceFile, ...]
    other_roles: Mapping[SourceFile, tuple[SourceFile, ...]] = field(default_factory=dict)
    dates: StatedDates = field(default_factory=StatedDates)

    def source(self, session: str, channel: str) -> SourceFile | None:
        """Return the file of a session and channel, None if the subject has none.

        Raises CaseError if several files match, or if the file has another role as well.
        """
        matching = [s for s in self.sources if (s.session, s.channel) == (session, channel)]
        if len(matching) > 1:
            names = ", ".join(sorted(s.path.name for s in matching))
            reason = f"expected one {channel} file, got {names}; narrow the pattern or remove some"
            raise matching[0].rejection("ambiguous files", reason)
        if matching and matching[0] in self.other_roles:
            others = ", ".join(
                f"{other.subject} {other.visit} {other.channel}"
                for other in self.other_roles[matching[0]]
            )
            role = f"{matching[0].visit} {channel}"
            reason = f"expected a file of {role} alone, got one that is {others} too"
            raise matching[0].rejection("one file in two roles", f"{reason}; narrow the patterns")
        return matching[0] if matching else None


def scan_trial(root: Path, layout: TrialLayout) -> list[TrialSubject]:
    """Return every subject that has files, a folder or a row in the table, sorted by name.

    No image is read, but the files that state dates are. Raises StorageError if `root` is not the
    folder of a trial.
    """
    if not root.is_dir():
        raise StorageError(f"{root}: expected the folder of a trial, got no such folder.")
    labels: defaultdict[str, set[str]] = defaultdict(set)
    rows: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    sources: defaultdict[str, list[SourceFile]] = defaultdict(list)
    if layout.participants is not None:
        for row in read_participants(root / layout.participants, layout):
            rows[subject_id(row[layout.subject_column])].append(row)
    for label in find_folders(root, layout.flair):
        labels[subject_id(label)].add(strip_sub_prefix(label))
    for session, session_label in zip(SESSIONS, layout.sessions, strict=True):
        for channel in (
            "flair",
            *MASKS,
            *(SUBJECT_LEVEL_CHANNELS if session == CURRENT else ()),
        ):
            for label, path in find_files(root, getattr(layout, channel), session=session_label):
                labels[subject_id(label)].add(strip_sub_prefix(label))
                sources[subject_id(label)].append(
                    SourceFile(subject_id(label), session, channel, path, session_label)
                )
    names = sorted({*labels, *rows})
    if not names:
        raise StorageError(f"{root}: expected files like {layout.flair}, got none.")
    has_table = layout.participants is not None
    other_roles = _other_roles(sources)
    date_tables = find_date_tables(root, layout)
    return [
        TrialSubject(
            name,
            labels=tuple(sorted(labels[name])),
            rows=tuple(rows[name]) if has_table else ({},),
            sources=tuple(sources[name]),
            other_roles={
                source: other_roles[source] for source in sources[name] if source in other_roles
            },
            dates=read_dates(date_tables, name, _flair_paths(sources[name])),
        )
        for name in names
    ]


def _flair_paths(sources: list[SourceFile]) -> dict[str, list[Path]]:
    """Return the FLAIR files of each session of which a subject has any file."""
    paths: dict[str, list[Path]] = {source.session: [] for source in sources}
    for source in sources:
        if source.channel == "flair":
            paths[source.session].append(source.path)
    return paths


def _other_roles(
    sources: Mapping[str, list[SourceFile]],
) -> dict[SourceFile, tuple[SourceFile, ...]]:
    """Return the other roles of each file that loose patterns give to several roles."""
    roles: defaultdict[Path, list[SourceFile]] = defaultdict(list)
    for files in sources.values():
        for source in files:
            roles[source.path].append(source)
    return {
        source: tuple(other for other in shared if other != source)
        for shared in roles.values()
        if len(shared) > 1
        for source in shared
    }
