"""Read the trial's table of participants: one row a subject with its arm and covariates.

BIDS calls it participants.tsv; `TrialLayout` may name any other table.
"""

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.errors import StorageError
from storage.layout import CovariateValue
from storage.settings import TrialLayout
from storage.text_files import TextEncodingError, composed, read_text
from storage.trial.cells import MISSING, is_missing, looks_like_number, parse_cell

logger = logging.getLogger(__name__)


def subject_id(label: str) -> str:
    """Convert a trial's label to a BIDS subject id: `sub-` plus letters and digits.

    BIDS allows no other characters, and derivatives are written under this id. Composed and
    decomposed accents give the same id.
    """
    return "sub-" + re.sub("[^A-Za-z0-9]", "", strip_sub_prefix(composed(label)))


def strip_sub_prefix(text: str) -> str:
    """Return a subject's label without the `sub-` prefix of BIDS."""
    return text.removeprefix("sub-")


def parse_arm(row: Mapping[str, str], layout: TrialLayout, arms: tuple[str, ...]) -> str | None:
    """Return the arm in a row of the table by its name in the store, None if it is unknown.

    A name of an arm counts as that arm even if it is also a word for a missing value, such as NA.
    """
    text = row.get(layout.arm_column, MISSING)
    arm = layout.arm_names.get(text, text)
    return None if arm not in arms and is_missing(text) and text not in layout.arm_names else arm


def covariate_cells(row: Mapping[str, str], layout: TrialLayout) -> dict[str, str]:
    """Return the cells of a row that are covariates, by column."""
    reserved = (
        layout.subject_column,
        layout.arm_column,
        layout.trial_column,
        *layout.interval_columns,
    )
    return {name: text for name, text in row.items() if name not in reserved}


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
        # Without newline="" a line end inside quotes would be changed.
        lines = io.StringIO(composed(read_text(table)), newline="")
        reader = csv.DictReader(
            lines,
            delimiter=layout.separator,
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            restval=MISSING,
        )
        _check_columns(list(reader.fieldnames or ()), table, layout)
        rows = [_strip_cells(row, reader.line_num, table) for row in reader]
    except TextEncodingError as error:
        raise StorageError(str(error)) from error
    except (OSError, csv.Error) as error:
        raise StorageError(f"{table}: expected a table, got {error}; save it again.") from error
    for line in describe_odd_columns(rows, layout):
        logger.warning("%s: %s", table, line)
    return rows


def _strip_cells(row: Mapping[str, Any], line: int, table: Path) -> dict[str, str]:
    """Return the cells of a row without spaces around them.

    Raises StorageError for a row with more cells than the header: a decimal comma or an unquoted
    separator has then moved the cells behind it into wrong columns.
    """
    surplus = [cell for cell in row.get(None, ()) if cell.strip()]  # type: ignore[call-overload]
    if surplus:
        raise StorageError(
            f"{table}, line {line}: expected one cell a column, got {len(surplus)} more, such as "
            f"{surplus[0]!r}; quote cells that hold the separator, or write decimals with a point."
        )
    return {key: value.strip() for key, value in row.items() if key}


def describe_odd_columns(rows: Sequence[Mapping[str, str]], layout: TrialLayout) -> list[str]:
    """Return a sentence for each covariate whose cells are probably not what they seem.

    Such columns mix numbers and words, or hold words that a person may mean as numbers.
    """
    columns: dict[str, list[CovariateValue]] = {}
    for row in rows:
        for name, text in covariate_cells(row, layout).items():
            columns.setdefault(name, []).append(parse_cell(text))
    sentences = []
    for name, values in columns.items():
        words = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if isinstance(value, int | float)]
        intended = [word for word in words if looks_like_number(word)]
        if intended or (words and numbers):
            example = (intended or words)[0]
            sentences.append(
                f"column {name}: expected numbers or words, got {len(numbers)} numbers and "
                f"{len(words)} words, such as {example!r}, which is kept as a word; write numbers "
                f"as 34.5 and missing values as {MISSING}"
            )
    return sentences


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
