"""Read the dates of a trial's sessions: scans.tsv, sessions.tsv and the JSON beside an image."""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage.layout import SESSIONS
from storage.settings import TrialLayout
from storage.text_files import composed, read_text
from storage.trial.cells import is_missing
from storage.trial.dates import DateFile, StatedDate, StatedDates
from storage.trial.participants import subject_id
from storage.trial.path_patterns import find_files

TIME_COLUMN = "acq_time"
# Fields of a sidecar that hold a date, the most exact first.
_SIDECAR_FIELDS = ("AcquisitionDateTime", "AcquisitionDate", "SeriesDate", "StudyDate")

_SESSION_LABEL = re.compile("(?:^|[/_])ses-([^/_]+)")

Tables = Mapping[str, Sequence[Path]]
"""Tables of each subject, by the BIDS id."""


@dataclass(frozen=True)
class DateTables:
    """The tables of a trial that may state dates."""

    root: Path
    #: Role of each session by the trial's own label, such as {m12: w048}.
    roles: Mapping[str, str]
    #: Tables of files (scans.tsv).
    scans: Tables = field(default_factory=dict)
    #: Tables of sessions (sessions.tsv).
    sessions: Tables = field(default_factory=dict)


def find_date_tables(root: Path, layout: TrialLayout) -> DateTables:
    """Find the tables of all subjects of the trial in `root` without reading them."""
    return DateTables(
        root,
        {composed(layout.visits.label(role)): role for role in SESSIONS},
        _find(root, layout.scans, layout.sessions),
        _find(root, layout.session_tables, layout.sessions),
    )


def _find(root: Path, patterns: Sequence[str], sessions: Sequence[str]) -> Tables:
    found: defaultdict[str, dict[Path, None]] = defaultdict(dict)  # a path once, in order
    for pattern in patterns:
        for session in sessions if "{session}" in pattern else ("",):
            for label, path in find_files(root, pattern, session=session):
                found[subject_id(label)][path] = None
    return {subject: list(paths) for subject, paths in found.items()}


def read_dates(
    tables: DateTables, subject: str, images: Mapping[str, Sequence[Path]]
) -> StatedDates:
    """Return the dates that the files of a subject state.

    `images` are the FLAIR files of each session that has files. Dates of others are ignored.
    """
    dates: list[StatedDate] = []
    problems: list[str] = []
    files: list[tuple[DateFile, Path, str]] = [
        *(("scans", path, "") for path in tables.scans.get(subject, ())),
        *(("sessions", path, "") for path in tables.sessions.get(subject, ())),
        *(
            ("sidecar", sidecar_path(image), session)
            for session, paths in images.items()
            for image in paths
        ),
    ]
    for kind, path, session in files:
        try:
            text = read_text(path)
            name = path.relative_to(tables.root).as_posix()
            if kind == "scans":
                stated = _scan_dates(text, path, images, tables.roles)
            elif kind == "sessions":
                stated = _session_dates(text, tables.roles)
            else:
                stated = _sidecar_dates(text, session)
            dates += [
                StatedDate(session, kind, cell, name)
                for session, cell in stated
                if session in images and not is_missing(cell)
            ]
        except FileNotFoundError:
            continue  # most images have no sidecar
        except (OSError, ValueError, RecursionError, csv.Error) as error:
            problems.append(
                f"expected dates in {path.relative_to(tables.root).as_posix()}, got "
                f"{str(error).rstrip('.')}; correct it, no date of it is used"
            )
    return StatedDates(tuple(dates), tuple(problems))


def sidecar_path(image: Path) -> Path:
    """Return the path of the JSON file beside an image."""
    return image.with_name(f"{_stem(image.name)}.json")


def _scan_dates(
    text: str, table: Path, images: Mapping[str, Sequence[Path]], roles: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield session and date of the rows that name a FLAIR file, relative to the table's folder.

    A FLAIR may be a processed copy that no row names. Then another FLAIR of the same visit stands
    for it, or else the first file of that visit.
    """
    sessions = {
        composed(_stem(str(path))): session for session, paths in images.items() for path in paths
    }
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in _rows(text):
        name, cell = composed(row.get("filename") or ""), row.get(TIME_COLUMN) or ""
        if is_missing(cell):
            continue
        exact = sessions.get(composed(_stem(str(table.parent / name))))
        label = _SESSION_LABEL.search(name) or _SESSION_LABEL.search(composed(table.name))
        session = exact or (roles.get(label[1]) if label else None)
        if session is not None:
            found[session].append((0 if exact else 1 if "_FLAIR." in name else 2, cell))
    for session, cells in found.items():
        nearest = min(rank for rank, _ in cells)
        chosen = [cell for rank, cell in cells if rank == nearest]
        yield from ((session, cell) for cell in (chosen[:1] if nearest == 2 else chosen))


def _session_dates(text: str, roles: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield session and date of the rows whose session, with or without `ses-`, has a role."""
    for row in _rows(text):
        label = composed(row.get("session_id") or "")
        role = roles.get(label) or roles.get(label.removeprefix("ses-"))
        if role is not None and row.get(TIME_COLUMN) is not None:
            yield role, row[TIME_COLUMN]


def _sidecar_dates(text: str, session: str) -> Iterator[tuple[str, str]]:
    """Yield the session with the first field of a sidecar that holds a date.

    Raises ValueError if the text is no JSON object.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"{type(fields).__name__} instead of fields and values")
    for name in _SIDECAR_FIELDS:
        value = fields.get(name)
        if isinstance(value, str | int) and not is_missing(str(value)):
            yield session, str(value)
            return


def _rows(text: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a BIDS table, cells without spaces around them."""
    for row in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        yield {name: cell.strip() for name, cell in row.items() if name and isinstance(cell, str)}


def _stem(name: str) -> str:
    """Return a file name without the endings of NIfTI."""
    return name.removesuffix(".gz").removesuffix(".nii")
