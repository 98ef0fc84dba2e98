"""Write the quality-control table: one self-contained HTML page and a TSV."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from storage.atomic import atomic_write_text
from storage.layout import MASKS, SESSIONS
from storage.qc.measure import CaseQuality, sort_key
from storage.qc.thumbnail import COLOURS
from storage.store.case_table import CaseTable
from storage.store.copies import find_copies

_STYLE = """
body { font: 14px/1.45 system-ui, "DejaVu Sans", sans-serif; margin: 1.2rem 1.4rem; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } p { max-width: 62rem; margin: .3rem 0 .8rem; }
table { border-collapse: collapse; width: 100%; }
th { position: sticky; top: 0; background: #22313f; color: #fff; text-align: left; z-index: 1; }
th, td { padding: .45rem .5rem; vertical-align: top; border-bottom: 1px solid #d5d9dd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, td.plain { white-space: nowrap; }
th.number { text-align: right; } td:nth-child(2) { min-width: 10rem; }
tr.flagged { background: #fff6e5; } tr.flagged td:first-child { border-left: 5px solid #b45f06; }
tr.clear td:first-child { border-left: 5px solid #d5d9dd; }
ul { margin: 0; padding-left: 1.1rem; } td li { color: #7a3e00; font-weight: 600; }
small { color: #555; } img { display: block; border-radius: 3px; width: 29vw; min-width: 22rem; }
.key { padding: 0 .5rem; border-radius: 3px; color: #000; font-weight: 600; }
summary { cursor: pointer; font-weight: 600; } details { margin-bottom: 1rem; }
"""
_NUMBERS = ("FLAIR, raw", "T2", "Gad", "NET2")
_COLUMNS = ("subject", "look at", "middle of the slab", "session", *_NUMBERS, "slab and source")


def write_qc_report(
    cases: Sequence[CaseQuality], table: CaseTable, folder: Path
) -> tuple[Path, Path]:
    """Write qc.html and qc.tsv, flagged cases first; the page also lists excluded subjects.

    Subjects who share an image are flagged here, because each case was measured by itself.
    """
    ordered = sorted(_with_copies(cases, table), key=sort_key)
    page, sheet = folder / "qc.html", folder / "qc.tsv"
    atomic_write_text(sheet, _to_tsv(ordered))
    atomic_write_text(page, "".join(_page(ordered, table)))
    return page, sheet


def _with_copies(cases: Sequence[CaseQuality], table: CaseTable) -> Iterator[CaseQuality]:
    """Yield the cases with a flag for each image that another subject has, too."""
    flags: defaultdict[str, list[str]] = defaultdict(list)
    for copy in find_copies(table.cases):
        flags[copy.subject].append(
            f"{copy.session} is the image of {copy.other} at {copy.other_session}"
        )
        flags[copy.other].append(
            f"{copy.other_session} is the image of {copy.subject} at {copy.session}"
        )
    for case in cases:
        yield replace(case, flags=(*case.flags, *flags[case.subject]))


def _page(cases: Sequence[CaseQuality], table: CaseTable) -> Iterator[str]:
    flagged = sum(bool(case.flags) for case in cases)
    keys = " ".join(
        f'<span class="key" style="background: rgb{colour}">{_kind(kind)}</span>'
        for kind, colour in COLOURS.items()
    )
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield f"<title>Quality control</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>Quality control: {len(cases)} cases, {flagged} to look at"
    yield f", {len(table.excluded)} excluded</h1>"
    yield f"<p>As the store holds them, from {escape(table.bids)}. A flag is a reason to look, not "
    yield "a verdict. Swapped sessions that look alike, or another contrast, raise no flag. "
    yield "Pictures: anterior is up and the patient's right is on the right. "
    yield f"Outlines: {keys} Volumes in ml, in brackets the number of lesions.</p>"
    yield from _excluded(table)
    heads = "".join(
        f'<th scope="col"{" class=number" if name in _NUMBERS else ""}>{name}</th>'
        for name in _COLUMNS
    )
    yield f"<table><thead><tr>{heads}</tr></thead><tbody>\n"
    yield from map(_row, cases)
    yield "</tbody></table></body></html>\n"


def _excluded(table: CaseTable) -> Iterator[str]:
    if not table.excluded:
        return
    number = len(table.excluded)
    yield f"<details open><summary>{number} subjects are not in the store</summary><ul>"
    for exclusion in table.excluded:
        yield f"<li>{escape(str(exclusion))}</li>"
    yield "</ul></details>"


def _row(case: CaseQuality) -> str:
    picture = base64.b64encode(case.picture).decode()
    flags = "".join(f"<li>{escape(flag)}</li>" for flag in case.flags)
    cells = [
        f"<td><b>{escape(case.subject)}</b><br><small>{escape(case.arm or 'arm unknown')}<br>"
        f"{case.split}</small></td>",
        f"<td><ul>{flags}</ul></td>" if flags else "<td><small>nothing</small></td>",
        f'<td><img loading="lazy" alt="{escape(case.subject)}, three sessions" '
        f'src="data:image/jpeg;base64,{picture}"></td>',
        f'<td class="plain">{"<br>".join(SESSIONS)}</td>',
        _number(_range(case, session) for session in SESSIONS),
        *(_number(_volume(case, session, kind) for session in SESSIONS) for kind in MASKS),
        f'<td class="plain">field {case.in_field:.0%}, head {case.in_head:.0%}<br>'
        f"{_sides(case.asymmetry)}<br><small>{case.orientation}, "
        f"{' × '.join(map(str, case.shape))}<br>"
        f"{' × '.join(f'{size:.3g}' for size in case.spacing)} mm</small></td>",
    ]
    return f'<tr class="{"flagged" if flags else "clear"}">{"".join(cells)}</tr>\n'


def _number(lines: Iterable[str]) -> str:
    return f'<td class="number">{"<br>".join(map(escape, lines))}</td>'


def _range(case: CaseQuality, session: str) -> str:
    if session not in case.intensity:
        return "–"
    low, high = case.intensity[session]
    return f"{low:.4g} to {high:.4g}"


def _volume(case: CaseQuality, session: str, kind: str) -> str:
    lesions = case.lesions.get((session, kind))
    return "–" if lesions is None else f"{lesions.ml:.2f} ({lesions.count})"


def _sides(asymmetry: float) -> str:
    """Return how much more of the head lies on one side, as text."""
    more = round(100 * abs(asymmetry))
    side = "right" if asymmetry > 0 else "left"
    return f"{side} +{more}%" if more else "even sides"


def _kind(kind: str) -> str:
    return "Gad" if kind == "gad" else kind.upper()


def _to_tsv(cases: Sequence[CaseQuality]) -> str:
    records = [dict(_cells(case)) for case in cases]
    head = list(records[0]) if records else []
    lines = ["\t".join(head), *("\t".join(record.values()) for record in records)]
    return "\n".join(lines) + "\n"


def _cells(case: CaseQuality) -> Iterator[tuple[str, str]]:
    """Yield name and value of each cell in a row of the TSV; missing values are n/a, as in BIDS."""
    yield "subject", case.subject
    yield "flags", "; ".join(case.flags) or "n/a"
    yield "arm", case.arm or "n/a"
    yield "split", case.split
    yield "in_field", f"{case.in_field:.4f}"
    yield "in_head", f"{case.in_head:.4f}"
    yield "asymmetry", f"{case.asymmetry:.4f}"
    for session in SESSIONS:
        low, high = case.intensity.get(session, (None, None))
        yield f"{session}_low", "n/a" if low is None else f"{low:.6g}"
        yield f"{session}_high", "n/a" if high is None else f"{high:.6g}"
        clipped = case.clipped.get(session)
        yield f"{session}_clipped", "n/a" if clipped is None else f"{clipped:.4f}"
        for kind in MASKS:
            lesions = case.lesions.get((session, kind))
            yield f"{session}_{kind}_ml", "n/a" if lesions is None else f"{lesions.ml:.4f}"
            yield f"{session}_{kind}_count", "n/a" if lesions is None else str(lesions.count)
    yield "orientation", case.orientation
    yield "shape", "x".join(map(str, case.shape))
    yield "spacing", "x".join(f"{size:.4g}" for size in case.spacing)
