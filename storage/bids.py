"""A BIDS trial as subjects, each with the files and the row of participants.tsv that it has."""

import csv
import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CaseError, Refusal, StorageError
from storage.layout import MASKS, SESSIONS
from storage.settings import BidsLayout

UNKNOWN = ("n/a", "")
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
    """A participant: `name` is the participant_id, `rows` its lines in participants.tsv."""

    name: str
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


def read_trial(root: Path, layout: BidsLayout) -> list[Subject]:
    """Every subject that has a folder or a row in participants.tsv, sorted by name.

    Raises StorageError where `root` is no BIDS folder that conversion can use.
    """
    table = root / "participants.tsv"
    if not table.is_file():
        raise StorageError(f"{root}: expected a BIDS folder with participants.tsv, got none there.")
    rows = _read_participants(table)
    folders = {path.name for path in root.glob("sub-*") if path.is_dir()}
    names = sorted(folders | {row["participant_id"] for row in rows})
    if not names:
        raise StorageError(f"{root}: expected subjects (sub-* folders), got none.")
    by_name: dict[str, list[dict[str, str]]] = {name: [] for name in names}
    for row in rows:
        by_name[row["participant_id"]].append(row)
    return [
        Subject(name, tuple(by_name[name]), tuple(_sources(root, name, layout))) for name in names
    ]


def _read_participants(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t", restval="n/a")
        if "participant_id" not in (reader.fieldnames or ()):
            raise StorageError(
                f"{table}: expected a tab-separated column participant_id, "
                f"got {reader.fieldnames or 'an empty file'}."
            )
        return [{key: value.strip() for key, value in row.items() if key} for row in reader]


def _sources(root: Path, name: str, layout: BidsLayout) -> Iterator[Source]:
    for session, label in zip(SESSIONS, layout.sessions, strict=True):
        for channel in ("flair", *MASKS, *(ANATOMY if session == REFERENCE else ())):
            pattern = getattr(layout, channel).format(subject=name, session=label)
            # Twice as fast as Path.glob, which counts with a dozen patterns a subject.
            for path in sorted(glob.glob(pattern, root_dir=root)):  # noqa: PTH207
                yield Source(name, session, channel, root / path)
