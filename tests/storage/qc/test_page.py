"""The page of quality control: small, safe, and usable in a browser from a disk."""

import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from storage import StoreSpec
from storage.errors import Exclusion
from storage.layout import SESSIONS, VisitSchedule
from storage.qc.inspection import Inspection
from storage.qc.measure import CaseQuality, LesionStats
from storage.qc.page import flag_kind, render_page
from storage.qc.report import write_qc_report
from storage.qc.slices import draw_slices
from storage.store.case_table import CaseTable
from tests.storage.qc.test_qc import SLAB, SPACING, measured, sound_case
from tests.support import bids
from tests.support.store import table_of

ODD = 'sub-<i>3</i></script>"&'
EXCLUDED = (
    Exclusion("sub-8", "not finite", "expected finite voxels, got <NaN>", "w048", "a/b.nii.gz"),
    Exclusion("sub-9", "no FLAIR", "expected a FLAIR at w048, got none"),
)
READER = Path(__file__).with_name("read_page.js")
LABELS = ("month 0", "month.12", "24")  # neither are they selectors of CSS, nor words of a flag
TITLES = dict(zip(SESSIONS, LABELS, strict=True))


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> CaseQuality:
    return measured(tmp_path_factory.mktemp("one") / "store", sound_case())


def table(*excluded: Exclusion) -> CaseTable:
    return table_of(
        StoreSpec(bids.ARMS, SLAB, SPACING, VisitSchedule(LABELS)),
        [],
        bids="/data/trial",
        excluded=excluded,
    )


def case(
    quality: CaseQuality, subject: str, *, split: str, arm: str | None, t2: float, flags: str
) -> CaseQuality:
    """Return a case with other words and another T2 volume at w048; none if it is negative."""
    lesions = {key: value for key, value in quality.lesions.items() if key != ("w048", "t2")}
    if t2 >= 0:
        lesions["w048", "t2"] = LesionStats(t2, 5)
    reasons = tuple(filter(None, flags.split(";")))
    return replace(quality, subject=subject, split=split, arm=arm, lesions=lesions, flags=reasons)


@pytest.fixture(scope="module")
def page(quality: CaseQuality, tmp_path_factory: pytest.TempPathFactory) -> Path:
    field = "field covers {}% of the slab"
    cases = [
        case(quality, "sub-1", split="train", arm="placebo", t2=1, flags=""),
        case(quality, "sub-2", split="test", arm="avonex", t2=-1, flags="w096: T2 mask empty"),
        case(quality, ODD, split="val", arm=None, t2=3, flags=f"{field.format(60)};other"),
        case(quality, "sub-10", split="train", arm="placebo", t2=2, flags=field.format(40)),
    ]
    pictures = draw_slices(sound_case(), LABELS)
    inspections = [Inspection(each, pictures) for each in cases]
    out = tmp_path_factory.mktemp("qc")
    return write_qc_report(inspections, table(*EXCLUDED), out).page


def test_the_page_of_2100_subjects_is_small(quality: CaseQuality) -> None:
    cases = [
        replace(quality, subject=f"sub-{i:04d}", flags=("w000 and w048 look unlike (r = 0.31)",))
        for i in range(2100)
    ]
    pictures = {each.subject: f"pictures-0123456789ab/0000_{each.subject}" for each in cases}
    text = render_page(cases, pictures, table(), titles=TITLES)
    assert len(text.encode()) < 1_200_000


def test_the_page_requests_nothing_but_the_pictures_beside_it(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"https?:|@import|url\(|<link|<script src", text)
    assert "base64" not in text
    stems = re.findall(r'"picture":"(.*?)"', text)
    assert len(set(stems)) == 4
    assert all(
        (page.parent / f"{stem}.{end}").is_file() for stem in stems for end in ("jpg", "png")
    )
    assert "Quality control: 4 cases, 3 to look at, 2 excluded" in text
    assert "the patient's right is on the left" in text.replace("&#39;", "'")


def test_no_name_or_reason_becomes_markup(page: Path) -> None:
    text = page.read_text()
    assert text.count("</script>") == 2
    assert "<i>" not in text
    assert "<NaN>" not in text


def test_a_page_without_flags_exclusions_or_a_second_subject_is_written(
    quality: CaseQuality, tmp_path: Path
) -> None:
    inspections = [Inspection(quality, draw_slices(sound_case(), LABELS))]
    report = write_qc_report(inspections, table(), tmp_path)
    assert "Quality control: 1 case, 0 to look at, 0 excluded" in report.page.read_text()
    assert 'id="excluded"' not in report.page.read_text()


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("field covers 60% of the slab", "field covers …% of the slab"),
        ("w000 and w048 look unlike (r = 0.31)", "w000 and w048 look unlike (r = …)"),
        ("w048: NET2 100% outside the head", "w048: NET2 …% outside the head"),
        (
            "T2 falls from 0.1 ml at w048 to 0 ml at w096",
            "T2 falls from … ml at w048 to … ml at w096",
        ),
        ("month 0 and 24 look unlike (r = 0.31)", "month 0 and 24 look unlike (r = …)"),
        ("w000 is the image of sub-1 at w048", "w000 is the image of … at w048"),
    ],
)
def test_flags_are_grouped_without_their_numbers_and_subjects(flag: str, kind: str) -> None:
    assert flag_kind(flag, LABELS) == kind


@pytest.fixture(scope="module")
def seen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Act on the page as a reader would, and return what it showed."""
    found: dict[str, Any] = browse(page, READER.read_text(), tmp_path_factory.mktemp("profile"))
    return found


def test_rows_are_drawn_as_needed_and_all_of_them_on_paper(
    quality: CaseQuality, tmp_path: Path
) -> None:
    cases = [replace(quality, subject=f"sub-{i:03d}") for i in range(250)]
    pictures = {each.subject: f"pictures/{each.subject}" for each in cases}
    page = tmp_path / "qc.html"
    page.write_text(render_page(cases, pictures, table(), titles=TITLES))
    script = """
        const rows = () => document.querySelector("#cases tbody").rows.length;
        const seen = [rows()];
        show(219);
        document.getElementById("details").addEventListener("close", () => {
            seen.push(rows(), document.activeElement.getAttribute("aria-label"));
            dispatchEvent(new Event("beforeprint"));
            report([...seen, rows()]);
        });
        document.getElementById("details").close();
        """
    first, opened, focused, printed = browse(page, script, tmp_path / "profile")
    assert (first, printed) == (100, 250)
    assert opened >= 220
    assert focused == "All slices of sub-219"


def browse(page: Path, script: str, profile: Path) -> Any:
    """Open a page from disk in Chromium, run `script`, and return what it gives to `report`."""
    report = "const report = (value) => console.log(`SEEN ${JSON.stringify(value)} SEEN`);"
    acted = page.with_name("acted.html")
    acted.write_text(
        page.read_text().replace("</body>", f"<script>{report}{script}</script></body>")
    )
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={profile}", "--disable-background-networking", acted.as_uri()]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = partial(os.killpg, process.pid, signal.SIGKILL)
    limit = Timer(120, end)
    limit.start()
    assert process.stderr is not None
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r'"SEEN (.*) SEEN", source: ', line):
                return json.loads(found[1])
    finally:
        limit.cancel()
        end()
        process.wait()
        process.stderr.close()
    raise AssertionError("".join(lines[-20:]))


@cache
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("Chromium is not installed: apt-get install chromium")


def test_columns_sort_in_both_directions_and_missing_values_come_last(seen: dict[str, Any]) -> None:
    assert seen["first"] == [ODD, "sub-2", "sub-10", "sub-1"], "most flags first"
    assert seen["falling"] == [ODD, "sub-10", "sub-1", "sub-2"]
    assert seen["rising"] == ["sub-1", "sub-10", ODD, "sub-2"]
    assert seen["sorted"] == "ascending"


def test_cases_are_filtered_and_their_number_is_shown(seen: dict[str, Any]) -> None:
    assert seen["flagged"] == [ODD, "sub-2", "sub-10"]
    assert seen["shown"] == "3 of 4 shown, 3 of them flagged"
    assert seen["kind"] == [ODD, "sub-10"]
    assert seen["arm"] == ["sub-10"]
    assert seen["split"] == [ODD]
    assert seen["text"] == ["sub-2"]
    assert seen["reset"] == seen["first"]


def test_excluded_subjects_are_filtered_too(seen: dict[str, Any]) -> None:
    assert seen["excluded"] == "2 of 2 shown"
    assert seen["nothing"] == [[], "0 of 4 shown, 0 of them flagged", "1 of 2 shown"]


def test_pictures_load_on_sight_and_show_the_chosen_slice(seen: dict[str, Any]) -> None:
    assert seen["loaded"] == [True, "lazy"]
    assert seen["middle"].endswith(" 50%")
    assert seen["top"].endswith(" 0%")
    assert seen["outlines"] == "hidden"


def test_all_slices_of_a_case_open_and_keys_lead_to_the_next_case(seen: dict[str, Any]) -> None:
    assert seen["title"] == "sub-2, avonex, test"
    assert seen["strips"] == SLAB[0]
    assert seen["values"]
    assert "case=sub-2" in seen["address"]
    assert seen["focused"] == "All slices of sub-2"
    assert seen["search"] == "text"
