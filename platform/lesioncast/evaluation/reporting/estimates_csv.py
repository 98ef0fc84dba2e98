"""Every estimate of a report as one row of a tidy table.

The table follows from the types of the report: the walk below visits the fields of each dataclass,
and the annotations of `metrics.estimate` say which column a key or a field fills.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lesioncast.evaluation.analysis.performance import PairedDifference
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.metrics.estimate import Column, Estimate, GroupedRow

COLUMNS = (
    "section", "group", "metric", "method", "value", "low", "high", "n", "positives",
)  # fmt: skip


@dataclass(frozen=True)
class _RecordPath:
    """Where in the report an estimate stands."""

    section: tuple[str, ...] = ()
    group: str = ""
    method: str = ""
    cases: int | None = None
    positives: int | None = None

    def below(self, name: str) -> "_RecordPath":
        """Return the path of the field or key called `name`."""
        return replace(self, section=(*self.section, name))


def estimates_csv(report: EvaluationReport) -> str:
    """Return estimates.csv: one row for each estimate of the report.

    `section` is the path of the estimate's record in metrics.json, without groups and methods. A
    cell is empty where it does not apply or is undefined.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows_of_record(report, _RecordPath()))
    return text.getvalue()


def _rows_of_record(record: Any, path: _RecordPath) -> Iterator[list[str]]:
    """Yield the rows of a dataclass, field by field."""
    if isinstance(record, PairedDifference):
        method = f"{record.method} minus {record.minus_method}"
        yield _row(record.difference, replace(path, method=method), metric=record.metric)
        return
    columns = _columns(type(record))
    for field in fields(record):
        value = getattr(record, field.name)
        if columns[field.name] is Column.CASES:
            path = replace(path, cases=value)
        elif columns[field.name] is Column.POSITIVES:
            path = replace(path, positives=value)
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Estimate):
            yield _row(value, path, metric=field.name)
        else:
            yield from _rows(value, path.below(field.name), columns[field.name])


def _rows(value: Any, path: _RecordPath, column: Column | None) -> Iterator[list[str]]:
    """Yield the rows of a field's value; the keys of a mapping fill `column`."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            if column is Column.GROUP:
                yield from _rows(child, replace(path, group=key), None)
            elif column is Column.METHOD:
                yield from _rows(child, replace(path, method=key), None)
            else:
                yield from _rows(child, path.below(key), None)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for child in value:
            group = child.group if isinstance(child, GroupedRow) else path.group
            yield from _rows(child, replace(path, group=group), None)
    elif is_dataclass(value):
        yield from _rows_of_record(value, path)


def _columns(kind: type) -> dict[str, Column | None]:
    """Return the column that each field of a dataclass fills, None where it fills none."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: _column(hint) for name, hint in hints.items()}


def _column(hint: Any) -> Column | None:
    if get_origin(hint) is not Annotated:
        return None
    return next((mark for mark in get_args(hint)[1:] if isinstance(mark, Column)), None)


def _row(estimate: Estimate, path: _RecordPath, *, metric: str) -> list[str]:
    numbers = (estimate.value, estimate.low, estimate.high, path.cases, path.positives)
    return [
        ".".join(path.section),
        path.group,
        metric,
        path.method,
        *("" if number is None else str(number) for number in numbers),
    ]
