"""The columns of the quality-control table, for qc.tsv and the page alike.

A measurement becomes visible everywhere by one entry in `columns`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from storage.layout import CURRENT, MASKS, OUTCOME
from storage.qc.measure import CaseQuality

Value = str | float | None
# Numbers of a `LesionTransfer`.
_TRANSFER_TITLES = {
    "source_count": "lesions in the source",
    "source_mm3": "mm3 in the source",
    "outside_count": "lesions outside the slab",
    "outside_mm3": "mm3 outside the slab",
    "resampling_count": "lesions smaller than a voxel",
    "resampling_mm3": "mm3 of lesions smaller than a voxel",
}
MASK_TITLES = {kind: "Gad" if kind == "gad" else kind.upper() for kind in MASKS}


@dataclass(frozen=True)
class Column:
    """One measurement of every case."""

    #: Name in qc.tsv.
    name: str
    #: Heading in the page, below that of the group.
    title: str
    #: The measurement of a case; None if there is none.
    value: Callable[[CaseQuality], Value]
    #: Format of numbers, such as .4f.
    number: str = ""
    #: Heading of several columns that stand side by side.
    group: str = ""
    #: How the page shows a number.
    unit: Literal["", "%", "ml"] = ""
    #: Whether the page's table has the column; all columns are in a case's details.
    listed: bool = False
    #: Whether the page has the column, too; qc.tsv has all.
    in_page: bool = True
    #: Name of the column that the page shows in small print below this one.
    below: str = ""

    def text(self, case: CaseQuality) -> str | None:
        """Return the measurement as text without tabs and line breaks."""
        value = self.value(case)
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return " ".join(value.split())
        return f"{value:{self.number}}" if math.isfinite(value) else None

    def cell(self, case: CaseQuality) -> str:
        """Return the measurement as a cell of a TSV; missing values are n/a, as in BIDS."""
        return self.text(case) or "n/a"

    def shown(self, case: CaseQuality) -> Value:
        """Return the measurement for the page, a number with the digits of the TSV."""
        text = self.text(case)
        return float(text) if text is not None and self.number else text


def columns(titles: Mapping[str, str]) -> list[Column]:
    """Return all columns in order; `titles` are the trial's names of the sessions."""
    return [
        Column("subject", "subject", lambda case: case.subject, listed=True),
        Column("flags", "look at", lambda case: "; ".join(case.flags), listed=True),
        Column("arm", "arm", lambda case: case.arm, listed=True),
        Column("split", "split", lambda case: case.split, listed=True),
        Column("in_field", "in field", lambda case: case.in_field, ".4f", "slab", "%", listed=True),
        Column("in_head", "in head", lambda case: case.in_head, ".4f", "slab", "%", listed=True),
        Column("asymmetry", "R − L", lambda case: case.asymmetry, ".4f", "slab", "%", listed=True),
        *(
            Column(f"{session}_in_head", title, partial(_head, session), ".4f", "head", "%")
            for session, title in titles.items()
        ),
        *_lesion_columns(titles),
        *_intensity_columns(titles),
        Column(
            "days_to_current",
            f"to {titles[CURRENT]}",
            lambda case: case.intervals.days_to_current,
            ".6g",
            "days",
        ),
        Column(
            "days_to_outcome",
            f"to {titles[OUTCOME]}",
            lambda case: case.intervals.days_to_outcome,
            ".6g",
            "days",
        ),
        Column("orientation", "axes", lambda case: case.orientation, group="source"),
        Column("shape", "voxels", lambda case: "x".join(map(str, case.shape)), group="source"),
        Column(
            "spacing",
            "mm",
            lambda case: "x".join(f"{size:.4g}" for size in case.spacing),
            group="source",
        ),
    ]


def _head(session: str, case: CaseQuality) -> Value:
    return case.head.get(session)


def _lesion_columns(titles: Mapping[str, str]) -> Iterator[Column]:
    """Yield volume and number of lesions by kind of mask and session."""
    for kind in MASKS:
        group = MASK_TITLES[kind]
        for session, title in titles.items():
            volume, count = f"{title}_{kind}_ml", f"{title}_{kind}_count"
            get = partial(_lesions, session, kind)
            yield Column(
                volume, title, partial(get, "ml"), ".4f", group, "ml", listed=True, below=count
            )
            yield Column(count, f"{title}, lesions", partial(get, "count"), ".0f", group)
            for name, of in _TRANSFER_TITLES.items():
                transfer = partial(_transfer, session, kind, name)
                yield Column(
                    f"{session}_{kind}_{name}",
                    f"{title}, {of}",
                    transfer,
                    ".6g",
                    group,
                    in_page=name.endswith("count"),
                )


def _transfer(session: str, kind: str, name: str, case: CaseQuality) -> Value:
    transfer = case.transfers.get((session, kind))
    if transfer is None:
        return None
    number: float = getattr(transfer, name)
    return number


def _lesions(session: str, kind: str, field: Literal["ml", "count"], case: CaseQuality) -> Value:
    lesions = case.lesions.get((session, kind))
    if lesions is None:
        return None
    return lesions.ml if field == "ml" else lesions.count


def _intensity_columns(titles: Mapping[str, str]) -> Iterator[Column]:
    """Yield the raw values that became -1 and 1, and the share that is clipped, by session."""
    group = "raw FLAIR"
    for session, title in titles.items():
        for place, (name, becomes) in enumerate((("low", "-1"), ("high", "1"))):
            limit = partial(_limit, session, place)
            yield Column(f"{title}_{name}", f"{title}, becomes {becomes}", limit, ".6g", group)
        clipped = partial(_clipped, session)
        yield Column(f"{title}_clipped", f"{title}, clipped", clipped, ".4f", group, "%")


def _limit(session: str, place: int, case: CaseQuality) -> Value:
    limits = case.intensity.get(session)
    return None if limits is None else limits[place]


def _clipped(session: str, case: CaseQuality) -> Value:
    return case.clipped.get(session)
