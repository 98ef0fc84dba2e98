"""A trial on disk as subjects, each with the files and the rows of participants.tsv that it has."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CaseError, Exclusion, StorageError
from storage.layout import MASKS, SESSIONS
from storage.settings import TrialLayout
from storage.trial.participants import read_participants, strip_sub_prefix, subject_id
from storage.trial.path_patterns import find_files, find_folders

REQUIRED_SESSIONS = SESSIONS[:2]  # of FLAIR
REFERENCE_SESSION = SESSIONS[1]  # its FLAIR gives a subject's grid, and forecasts go back onto it
SUBJECT_LEVEL_CHANNELS = (
    "parcellation",
    "brain_mask",
)  # read once a subject, on the reference's grid


@dataclass(frozen=True)
class SourceFile:
    """One input file of a subject: `session` as a store names it, `channel` what it holds."""

    subject: str
    session: str
    channel: str
    path: Path

    def rejection(self, kind: str, reason: str) -> CaseError:
        """The error that says why this file keeps its subject out of a store."""
        return CaseError(Exclusion(self.subject, kind, reason, self.session, str(self.path)))


@dataclass(frozen=True)
class TrialSubject:
    """A participant: `name` as BIDS has it (`sub-0001`), `rows` its lines in participants.tsv.

    `labels` are what its files and folders call it, several where the name is not one patient's.
    """

    name: str
    labels: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    sources: tuple[SourceFile, ...]

    def source(self, session: str, channel: str) -> SourceFile | None:
        """The one file of that session and channel, None where the subject has none.

        Raises CaseError where several files match.
        """
        found = [s for s in self.sources if (s.session, s.channel) == (session, channel)]
        if len(found) > 1:
            names = ", ".join(sorted(s.path.name for s in found))
            reason = f"expected one {channel} file, got {names}; narrow the pattern or remove some"
            raise found[0].rejection("ambiguous files", reason)
        return found[0] if found else None


def scan_trial(root: Path, layout: TrialLayout) -> list[TrialSubject]:
    """Every subject that has files, a folder or a row in the table of participants, by name.

    Raises StorageError where `root` is no folder of a trial that conversion can use.
    """
    if not root.is_dir():
        raise StorageError(f"{root}: expected the folder of a trial, got none there.")
    labels: defaultdict[str, set[str]] = defaultdict(set)
    rows: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    sources: defaultdict[str, list[SourceFile]] = defaultdict(list)
    if layout.participants is not None:
        for row in read_participants(root / layout.participants, layout):
            rows[subject_id(row[layout.subject_column])].append(row)
    for label in find_folders(root, layout.flair):
        labels[subject_id(label)].add(strip_sub_prefix(label))
    for session, its_label in zip(SESSIONS, layout.sessions, strict=True):
        for channel in (
            "flair",
            *MASKS,
            *(SUBJECT_LEVEL_CHANNELS if session == REFERENCE_SESSION else ()),
        ):
            for label, path in find_files(root, getattr(layout, channel), session=its_label):
                labels[subject_id(label)].add(strip_sub_prefix(label))
                sources[subject_id(label)].append(
                    SourceFile(subject_id(label), session, channel, path)
                )
    names = sorted({*labels, *rows})
    if not names:
        raise StorageError(f"{root}: expected files like {layout.flair}, got none there.")
    listed = layout.participants is not None
    return [
        TrialSubject(
            name,
            labels=tuple(sorted(labels[name])),
            rows=tuple(rows[name]) if listed else ({},),
            sources=tuple(sources[name]),
        )
        for name in names
    ]
