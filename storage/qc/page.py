"""The quality-control page: one HTML file that draws its table from data inside of it.

Style, script and data are inline, and the pictures lie beside the page. It opens from a disk
without a server.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from storage.qc.columns import MASK_TITLES, Column, columns
from storage.qc.measure import CaseQuality
from storage.qc.slices import COLOURS, strip_size
from storage.radiological import CONVENTION
from storage.store.case_table import CaseTable

TEMPLATES = Path(__file__).parent / "templates"
# What differs between two flags of one kind: subjects and numbers, but not the digits of w048.
_PARTICULAR = r"\bsub-\w+|(?<![\w.])\d[\d.]*"


def render_page(
    cases: Sequence[CaseQuality],
    pictures: Mapping[str, str],
    table: CaseTable,
    *,
    titles: Mapping[str, str],
) -> str:
    """Return qc.html; `pictures` are the paths of a case's pictures without their suffix."""
    shown = [column for column in columns(titles) if column.in_page]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    strip = strip_size(table.spec.slab, len(titles))
    return environment.get_template("qc.html").render(
        style=Markup((TEMPLATES / "qc.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "qc.js").read_text(encoding="utf-8")),
        flagged=sum(bool(case.flags) for case in cases),
        table=table,
        number=len(cases),
        colours=[(MASK_TITLES[kind], colour) for kind, colour in COLOURS.items()],
        convention=CONVENTION,
        ratio=f"{strip.width} / {strip.height}",
        slices=table.spec.slab[0],
        data={
            "columns": [_column_record(column) for column in shown],
            "cases": [
                _case_record(case, shown, picture=pictures[case.subject], sessions=titles.values())
                for case in cases
            ],
            "excluded": [asdict(exclusion) for exclusion in table.excluded],
            "slices": table.spec.slab[0],
        },
    )


def flag_kind(flag: str, sessions: Collection[str]) -> str:
    """Return a flag without the numbers and subjects that are particular to its case.

    `sessions` are the trial's names of the sessions, which may be numbers and stay.
    """
    names = "|".join(re.escape(name) for name in sorted(sessions, key=len, reverse=True))
    return re.sub(f"({names})|{_PARTICULAR}", lambda found: found[1] or "…", flag)


def _column_record(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "title": column.title,
        "group": column.group,
        "unit": column.unit,
        "isNumber": bool(column.number),
        "listed": column.listed,
        "below": column.below,
    }


def _case_record(
    case: CaseQuality, shown: Sequence[Column], *, picture: str, sessions: Collection[str]
) -> dict[str, Any]:
    return {
        "picture": picture,
        "flags": [[flag, flag_kind(flag, sessions)] for flag in case.flags],
        "values": [column.shown(case) for column in shown],
    }
