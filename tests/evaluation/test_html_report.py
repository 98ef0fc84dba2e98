"""The report as a page: whole in itself, readable aloud, and in words that follow from numbers."""

import csv
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lesioncast.bundle.evaluation_card import read_warnings
from lesioncast.errors import EvaluationCardError, ForecastError
from lesioncast.evaluation.evaluate import EvaluationResult
from lesioncast.evaluation.reporting.bundle_card import card_text, write_card
from lesioncast.evaluation.reporting.estimates_csv import COLUMNS, estimates_csv
from lesioncast.evaluation.reporting.examples import choose_examples
from lesioncast.evaluation.reporting.figures import panels
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.html import ExampleCase, Picture, markdown_to_html, render_html
from lesioncast.forecasting.disclaimers import NOT_EVALUATED, bundle_warnings
from tests.evaluation.test_report import TEST, assessed, certain, ladder_counts
from tests.support.corruptions import as_nobody

SENTENCE = "Placebo never shares a trial with avonex."
SIGHTS = [ExampleCase("sub-1000", "why", "words", (Picture(b"\x89PNG", "an <alt>", "caption"),))]


class Page(HTMLParser):
    """Which tags and attributes a page holds, and that its tags are balanced."""

    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def assessment() -> EvaluationResult:
    """A forecast of noise with the ladder of arms, and warnings."""
    counts, forced = ladder_counts()
    found = assessed(TEST, counts, forced=forced)
    found.record["warnings"] = {"leak": [], "positivity": POSITIVITY, "sentences": [SENTENCE]}
    return found


POSITIVITY = {
    "cases": 2, "without_trial": 0, "trials": {"T": {"placebo": 2}},
    "arms": {"placebo": {"cases": 2, "trials": ["T"], "offered": 1.0, "overlap": None}},
    "never_together": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def text(assessment: EvaluationResult) -> str:
    plots = panels(assessment.record, assessment.cases, assessment.methods)
    return render_html(assessment.record, plots, SIGHTS)


def test_the_page_asks_for_nothing_outside_itself(text: str) -> None:
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))
    assert not re.search(r"url\((?!#)|@import", text)
    used = [each.get(key) for _, each in page.tags for key in ("href", "src", "xlink:href")]
    assert all(value is None or value.startswith(("#", "data:")) for value in used)


def test_the_page_can_be_read_aloud(text: str) -> None:
    page = Page(text)
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    drawings = [each for each in page.all("svg") if "role" in each]
    assert len(drawings) == 3
    assert all(each["aria-label"] for each in drawings)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    names = [each["id"] for _, each in page.tags if "id" in each]
    assert len(names) == len(set(names))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_notices_come_before_any_figure(text: str) -> None:
    assert text.index("Research use only.") < text.index("In short") < text.index("<svg")
    assert text.index(SENTENCE) < text.index("<svg")
    assert "no comparison" in text


def test_every_table_of_the_markdown_is_in_the_page_with_its_numbers() -> None:
    page = markdown_to_html("# A\n\n## B\n\n| arm | x <y> |\n| --- | --- |\n| placebo | 0.5 |\n")
    assert "<h2>A</h2>" in page
    assert '<th scope="row">placebo</th>' in page
    assert '<th scope="col">x &lt;y&gt;</th>' in page
    assert "<td>0.5</td>" in page
    assert 'aria-label="B"' in page


def test_words_follow_from_the_numbers() -> None:
    perfect = assessed(TEST, certain(TEST, TEST.plain)).record
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    chance = assessed(TEST, certain(TEST, mixed)).record
    who, _, count, where, treatments = (each.text for each in findings(perfect))
    assert "100 (100 to 100) of 100 pairs. That is better than what the treatment arm" in who
    assert "so it knows something of the patient beyond the treatment" in who
    assert "better than what the treatment arm alone tells" in count
    assert where == treatments == "Not asked in this evaluation."
    who, said, count, *_ = (each.text for each in findings(chance))
    assert "not told apart from a coin's 50. That is worse than what the treatment arm" in who
    assert "not shown to know more of the patient" in who
    assert "within what chance allows" in said
    assert "worse than what the treatment arm alone tells" in count


def test_a_gap_whose_interval_holds_nought_is_not_called_better() -> None:
    record = deepcopy(assessed(TEST, certain(TEST, TEST.plain)).record)
    for row in record["variants"]["plain"]["differences"]:
        row["low"] = -0.01
    assert "not told apart from what the treatment arm alone tells" in findings(record)[0].text


def test_an_undefined_score_is_said_to_be_so() -> None:
    record = deepcopy(assessed(TEST, certain(TEST, TEST.plain)).record)
    record["variants"]["plain"]["activity"]["pooled"]["methods"]["ensemble"]["auc"] = {
        "value": None, "low": None, "high": None, "defined": 0.0,
    }  # fmt: skip
    assert "too few of one kind" in findings(record)[0].text


def estimates(part: object) -> int:
    """How many values with an interval there are, however deep."""
    if isinstance(part, dict):
        own = {"value", "low", "high"} <= set(part)
        return own + sum(estimates(child) for child in part.values())
    return sum(estimates(child) for child in part) if isinstance(part, list | tuple) else 0


def test_the_tidy_table_holds_each_estimate_once(assessment: EvaluationResult) -> None:
    rows = list(csv.DictReader(estimates_csv(assessment.record).splitlines()))
    assert tuple(rows[0]) == COLUMNS
    keys = [tuple(row[name] for name in COLUMNS[:4]) for row in rows]
    assert len(keys) == len(set(keys))
    assert len(rows) == estimates(assessment.record)
    auc = assessment.record["variants"]["plain"]["activity"]["avonex"]["methods"]["ensemble"]["auc"]
    (row,) = [
        row for row in rows
        if (row["section"], row["group"], row["metric"], row["method"])
        == ("variants.plain.activity", "avonex", "auc", "ensemble")
    ]  # fmt: skip
    assert float(row["value"]) == auc["value"]
    assert (row["n"], row["positives"]) == ("40", str(int((TEST.plain[TEST.arm == 2] > 0).sum())))


def test_subjects_are_shown_by_rule() -> None:
    count = np.array([0, 3, 0, 9, 1, 0.0])
    probability = np.array([0.1, 0.9, 0.8, 0.7, 0.2, 0.1])
    shown = {each.row: each.why for each in choose_examples(count, probability)}
    assert list(shown) == [3, 1, 0, 4, 2]
    assert shown[3].startswith("the most new lesions")
    assert shown[1].startswith("the median")
    assert "gravest miss" in shown[4]
    assert "worst alarm" in shown[2]


def test_a_bundle_that_may_not_be_written_to_is_named(
    assessment: EvaluationResult, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir(mode=0o555)
    with (
        as_nobody(bundle),
        pytest.raises(
            EvaluationCardError, match=r"bundle: .* got Permission denied; the report is complete"
        ),
    ):
        write_card(bundle, assessment.record)
    assert not list(bundle.iterdir())


def test_a_subject_that_two_rules_choose_is_shown_once() -> None:
    (only,) = choose_examples(np.array([2.0]), np.array([0.5]))
    assert "the most new lesions of all; the median" in only.why
    assert "miss" in only.why


def test_a_card_beside_the_bundle_gives_forecasts_their_warnings(
    assessment: EvaluationResult, tmp_path: Path
) -> None:
    digest = assessment.record["bundle"]
    assert bundle_warnings(tmp_path, digest) == (NOT_EVALUATED,)
    write_card(tmp_path, assessment.record)
    assert read_warnings(tmp_path, digest) == (SENTENCE,)
    assert bundle_warnings(tmp_path, digest) == (SENTENCE,)
    assert SENTENCE in (tmp_path / "EVALUATION.md").read_text()
    assert card_text(assessment.record).count("Research use only.") == 1


def test_the_evaluation_of_another_bundle_is_refused(
    assessment: EvaluationResult, tmp_path: Path
) -> None:
    write_card(tmp_path, assessment.record)
    with pytest.raises(EvaluationCardError, match="expected the evaluation of bundle 000000000000"):
        read_warnings(tmp_path, "0" * 64)
    with pytest.raises(ForecastError, match="run jobs/evaluate.py again"):
        bundle_warnings(tmp_path, "0" * 64)
