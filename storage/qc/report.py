"""Write the quality-control report: qc.html, qc.tsv and a folder of pictures."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from storage.atomic import atomic_directory, atomic_write_text
from storage.digest import sha256_bytes
from storage.layout import SESSIONS
from storage.qc.columns import columns
from storage.qc.inspection import Inspection
from storage.qc.measure import CaseQuality, sort_key
from storage.qc.page import render_page
from storage.store.case_table import CaseTable, encode_table
from storage.store.copies import find_copies

PAGE, SHEET = "qc.html", "qc.tsv"
# A folder of pictures, or what a killed run left of one.
_PICTURES = re.compile(r"\.?pictures-[0-9a-f]{12}(\.\w+)?")


@dataclass(frozen=True)
class QcReport:
    """Files of a report, and what it says."""

    page: Path
    sheet: Path
    cases: int
    flagged: int


def write_qc_report(inspections: Iterable[Inspection], table: CaseTable, folder: Path) -> QcReport:
    """Write page, table and pictures, flagged cases first. The pictures are not held in memory.

    The folder of pictures is named by the case table, so the page of an earlier run keeps its own
    pictures until it is replaced in one step. Older pictures are removed then.

    Subjects who share an image are flagged here, because each case was measured by itself.
    """
    name = f"pictures-{sha256_bytes(encode_table(table))[:12]}"
    qualities, paths = [], {}
    with atomic_directory(folder / name) as pictures:
        for index, inspection in enumerate(inspections):
            subject = inspection.quality.subject
            # The number tells names apart that differ in case or in odd characters only.
            stem = f"{index:04d}_{re.sub('[^A-Za-z0-9-]', '', subject)[:64]}"
            (pictures / f"{stem}.jpg").write_bytes(inspection.pictures.flair)
            (pictures / f"{stem}.png").write_bytes(inspection.pictures.outlines)
            paths[subject] = f"{name}/{stem}"
            qualities.append(inspection.quality)
    cases = sorted(_with_copies(qualities, table), key=sort_key)
    titles = dict(zip(SESSIONS, table.spec.visits.labels, strict=True))
    atomic_write_text(folder / SHEET, _to_tsv(cases, titles))
    atomic_write_text(folder / PAGE, render_page(cases, paths, table, titles=titles))
    for path in folder.iterdir():
        if _PICTURES.fullmatch(path.name) and path.name != name:
            shutil.rmtree(path)
    flagged = sum(bool(case.flags) for case in cases)
    return QcReport(folder / PAGE, folder / SHEET, len(cases), flagged)


def _with_copies(cases: Sequence[CaseQuality], table: CaseTable) -> Iterator[CaseQuality]:
    """Yield the cases with a flag for each image that another subject has, too."""
    flags: defaultdict[str, list[str]] = defaultdict(list)
    for found in find_copies(table.cases):
        copy = found.named(table.spec.visits)
        flags[copy.subject].append(
            f"{copy.session} is the image of {copy.other} at {copy.other_session}"
        )
        flags[copy.other].append(
            f"{copy.other_session} is the image of {copy.subject} at {copy.session}"
        )
    for case in cases:
        yield replace(case, flags=(*case.flags, *flags[case.subject]))


def _to_tsv(cases: Sequence[CaseQuality], titles: Mapping[str, str]) -> str:
    shown = columns(titles)
    lines = ["\t".join(column.name for column in shown)]
    lines += ["\t".join(column.cell(case) for column in shown) for case in cases]
    return "\n".join(lines) + "\n"
