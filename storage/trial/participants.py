"""Read the trial's table of participants: one row a subject with its arm and covariates.

BIDS calls it participants.tsv; `TrialLayout` may name any other table.
"""

import csv
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from storage.errors import StorageError
from storage.settings import TrialLayout

logger = logging.getLogger(__name__)

MISSING_VALUES = ("n/a", "")


def subject_id(label: str) -> str:
    """Convert a trial's label to a BIDS subject id: `sub-` plus letters and digits.

    BIDS allows no other characters, and derivatives are written under this id.
    """
    return "sub-" + re.sub("[^A-Za-z0-9]", "", strip_sub_prefix(label))


def strip_sub_prefix(text: str) -> str:
    """Return a subject's label without the `sub-` prefix of BIDS."""
    return text.removeprefix("sub-")


def parse_arm(row: Mapping[str, str], layout: TrialLayout) -> str | None:
    """Return the arm in a row of the table by its name in the store, None if it is unknown."""
    text = row.get(layout.arm_column, MISSING_VALUES[0])
    return None if text in MISSING_VALUES else layout.arm_names.get(text, text)


def read_participants(table: Path, layout: TrialLayout) -> list[dict[str, str]]:
    """Return the rows of the table.

    Quotes are interpreted in a .csv and are ordinary characters in a BIDS .tsv. Raises StorageError
    if the table is missing, is not UTF-8 or lacks the subject column.
    """
    if not table.is_file():
        raise StorageError(
            f"{table}: expected the trial's table of participants, got no such file."
        )
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
            f"{table}: expected columns separated by {separator}, one of them "
            f"{layout.subject_column}, got {columns or 'an empty file'}."
        )
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise StorageError(f"{table}: expected each column once, got {', '.join(repeated)} again.")
    if layout.arm_column not in columns:
        logger.warning("%s: no column %s; all arms are unknown", table, layout.arm_column)
