"""Every estimate of an evaluation as one row of a tidy table."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

COLUMNS = (
    "section", "group", "metric", "method", "value", "low", "high", "n", "positives",
)  # fmt: skip


@dataclass(frozen=True)
class _RecordPath:
    """Where in the record an estimate was met."""

    section: tuple[str, ...] = ()
    group: str = ""
    method: str = ""
    cases: int | None = None
    positives: int | None = None


def estimates_csv(record: Mapping[str, Any]) -> str:
    """estimates.csv: whatever in the record has a value and an interval, wherever it stands.

    A cell is empty where it does not apply or is undefined. `section` is the path in metrics.json.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(record, _RecordPath(), name=""))
    return text.getvalue()


def _rows(part: Any, place: _RecordPath, *, name: str) -> Iterator[list[str]]:
    if isinstance(part, Mapping) and {"value", "low", "high"} <= set(part):
        yield _row(part, place, metric=name)
    elif isinstance(part, Mapping):
        here = _sized(part, place)
        for key, child in part.items():
            yield from _rows(child, _below(here, name, key), name=str(key))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for child in part:
            yield from _rows(child, _of_probe(child, place), name=name)


def _below(place: _RecordPath, parent: str, key: str) -> _RecordPath:
    """The place of a child called `key` of what is called `parent`."""
    if parent == "methods":
        return replace(place, method=key)
    if key == "methods" and place.section:
        return replace(place, section=place.section[:-1], group=place.section[-1])
    if parent == "arms" and place.section:
        return replace(place, group=key)
    return place if key in ("methods", "arms") else replace(place, section=(*place.section, key))


def _of_probe(part: Any, place: _RecordPath) -> _RecordPath:
    """The entries of the leak probe are told apart by what was told from which images."""
    if not (isinstance(part, Mapping) and "sessions" in part):
        return place
    within = f" within {part['within']}" if part["within"] else ""
    return replace(place, group=f"{part['of']}{within} from {'+'.join(part['sessions'])}")


def _sized(part: Mapping[str, Any], place: _RecordPath) -> _RecordPath:
    cases, positives = part.get("cases"), part.get("positives")
    return replace(
        place,
        cases=cases if isinstance(cases, int) else place.cases,
        positives=positives if isinstance(positives, int) else place.positives,
    )


def _row(estimate: Mapping[str, Any], place: _RecordPath, *, metric: str) -> list[str]:
    method = place.method
    if "minus" in estimate:
        metric, method = estimate["metric"], f"{estimate['of']} minus {estimate['minus']}"
    section = place.section[:-1] if place.section[-1:] == (metric,) else place.section
    values = (estimate["value"], estimate["low"], estimate["high"], place.cases, place.positives)
    return [
        ".".join(section),
        place.group,
        metric,
        method,
        *("" if value is None else str(value) for value in values),
    ]
