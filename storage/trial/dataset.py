"""A trial on disk as subjects, each with the files and the rows of participants.tsv that it has."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CaseError, Refusal, StorageError
from storage.layout import MASKS, SESSIONS
from storage.settings import TrialLayout
from storage.trial.participants import label_of, name_of, read_participants
from storage.trial.path_patterns import find, find_folders

REQUIRED = SESSIONS[:2]  # of FLAIR
REFERENCE = SESSIONS[1]  # its FLAIR gives a subject's grid, and forecasts go back onto it
ANATOMY = ("parcellation", "brain_mask")  # read once a subject, on the reference's grid


@dataclass(frozen=True)
class Source:
    """One input file of a subject: `session` as a store names it, `channel` what it holds."""

    subject: str
    session: str
    channel: str
    path: Path

    def refuse(self, kind: str, reason: str) -> CaseError:
        """The error that says why this file keeps its subject out of a store."""
        return CaseError(Refusal(self.subject, kind, reason, self.session, str(self.path)))


@dataclass(frozen=True)
class Subject:
    """A participant: `name` as BIDS has it (`sub-0001`), `rows` its lines in participants.tsv.

    `labels` are what its files and folders call it, several where the name is not one patient's.
    """

    name: str
    labels: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    sources: tuple[Source, ...]

    def source(self, session: str, channel: str) -> Source | None:
        """The one file of that session and channel, None where the subject has none.

        Raises CaseError where several files match.
        """
        found = [s for s in self.sources if (s.session, s.channel) == (session, channel)]
        if len(found) > 1:
            names = ", ".join(sorted(s.path.name for s in found))
            reason = f"expected one {channel} file, got {names}; narrow the pattern or remove some"
            raise found[0].refuse("ambiguous files", reason)
        return found[0] if found else None


def read_trial(root: Path, layout: TrialLayout) -> list[Subject]:
    """Every subject that has files, a folder or a row in the table of participants, by name.

    Raises StorageError where `root` is no folder of a trial that conversion can use.
    """
    if not root.is_dir():
        raise StorageError(f"{root}: expected the folder of a trial, got none there.")
    labels: defaultdict[str, set[str]] = defaultdict(set)
    rows: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    sources: defaultdict[str, list[Source]] = defaultdict(list)
    if layout.participants is not None:
        for row in read_participants(root / layout.participants, layout):
            rows[name_of(row[layout.subject_column])].append(row)
    for label in find_folders(root, layout.flair):
        labels[name_of(label)].add(label_of(label))
    for session, its_label in zip(SESSIONS, layout.sessions, strict=True):
        for channel in ("flair", *MASKS, *(ANATOMY if session == REFERENCE else ())):
            for label, path in find(root, getattr(layout, channel), session=its_label):
                labels[name_of(label)].add(label_of(label))
                sources[name_of(label)].append(Source(name_of(label), session, channel, path))
    names = sorted({*labels, *rows})
    if not names:
        raise StorageError(f"{root}: expected files like {layout.flair}, got none there.")
    listed = layout.participants is not None
    return [
        Subject(
            name,
            labels=tuple(sorted(labels[name])),
            rows=tuple(rows[name]) if listed else ({},),
            sources=tuple(sources[name]),
        )
        for name in names
    ]
