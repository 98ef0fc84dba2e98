"""The trial's table of participants: who is in it, under which arm.

BIDS calls it participants.tsv; a mapping may name any table with one row a subject.
"""

import csv
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from storage.errors import StorageError
from storage.settings import TrialLayout

log = logging.getLogger(__name__)

MISSING_VALUES = ("n/a", "")


def subject_id(label: str) -> str:
    """A subject's name from the label that its trial gives it: BIDS knows letters and digits only,
    and so does what is written of it later."""
    return "sub-" + re.sub("[^A-Za-z0-9]", "", strip_sub_prefix(label))


def strip_sub_prefix(text: str) -> str:
    """A subject's label without the `sub-` that BIDS puts before it."""
    return text.removeprefix("sub-")


def parse_arm(row: Mapping[str, str], layout: TrialLayout) -> str | None:
    """The arm in a row of the table, by its name in a store; None where it is not known."""
    text = row.get(layout.arm_column, MISSING_VALUES[0])
    return None if text in MISSING_VALUES else layout.arm_names.get(text, text)


def read_participants(table: Path, layout: TrialLayout) -> list[dict[str, str]]:
    """The rows of the table. Quotes mean something in a .csv, and nothing in a BIDS .tsv."""
    if not table.is_file():
        raise StorageError(f"{table}: expected the trial's table of participants, got none there.")
    tabs = layout.separator == "\t"
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(
                lines,
                delimiter=layout.separator,
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
                restval=MISSING_VALUES[0],
            )
            _check_columns(list(reader.fieldnames or ()), table, layout)
            return [{key: value.strip() for key, value in row.items() if key} for row in reader]
    except UnicodeDecodeError as error:
        raise StorageError(
            f"{table}: expected UTF-8 text, got the byte 0x{error.object[error.start]:02x}; "
            "save it as UTF-8."
        ) from error
    except (OSError, csv.Error) as error:
        raise StorageError(f"{table}: expected a table, got {error}; save it again.") from error


def _check_columns(columns: list[str], table: Path, layout: TrialLayout) -> None:
    if layout.subject_column not in columns:
        separator = {"\t": "tabs"}.get(layout.separator, repr(layout.separator))
        raise StorageError(
            f"{table}: expected columns set apart by {separator}, one of them "
            f"{layout.subject_column}, got {columns or 'an empty file'}."
        )
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise StorageError(f"{table}: expected each column once, got {', '.join(twice)} again.")
    if layout.arm_column not in columns:
        log.warning("%s: no column %s, so that no arm is known", table, layout.arm_column)
