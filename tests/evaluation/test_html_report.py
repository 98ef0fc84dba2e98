"""The HTML report: self-contained, accessible, and with verdicts that follow from the numbers."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lesioncast.bundle.evaluation_card import read_evaluation_card
from lesioncast.errors import EvaluationCardError, EvaluationReportError, ForecastError
from lesioncast.evaluation.causal.schema import (
    ArmPositivity,
    IdentifiabilityWarnings,
    LeakageAuc,
    LeakageProbe,
    Positivity,
)
from lesioncast.evaluation.evaluate import EvaluationResult
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.reporting.bundle_card import card_text, write_card
from lesioncast.evaluation.reporting.estimates_csv import COLUMNS, estimates_csv
from lesioncast.evaluation.reporting.examples import choose_examples
from lesioncast.evaluation.reporting.figures import panels
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.html import ExampleCase, Picture, markdown_to_html, render_html
from lesioncast.evaluation.reporting.json_io import report_from_json, report_to_json
from lesioncast.forecasting.disclaimers import NOT_EVALUATED, bundle_warnings
from lesioncast.warning_list import texts, warn
from storage import VisitSchedule
from tests.evaluation.test_report import TEST, certain, counts_by_arm, evaluated
from tests.support.corruptions import as_nobody

SENTENCE = "Placebo never shares a trial with avonex."
WARNING = warn("arms_never_compared", SENTENCE)
EXAMPLES = [ExampleCase("sub-1000", "why", "words", (Picture(b"\x89PNG", "an <alt>", "caption"),))]


class Page(HTMLParser):
    """The tags and attributes of a page, whose tags must be balanced."""

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
def result() -> EvaluationResult:
    """Return the evaluation of a forecast of noise, with every arm and with warnings."""
    counts, chosen = counts_by_arm()
    result = evaluated(TEST, counts, counterfactual_cases=chosen)
    visits = VisitSchedule(("m00", "m12", "m24"), (0, 365, 730))
    return replace(
        result, report=replace(result.report, identifiability_warnings=WARNINGS, visits=visits)
    )


def probe(target: str) -> LeakageProbe:
    """Return a probe that tells two classes apart."""
    leakage = LeakageAuc(("a", "b"), 2, (), Estimate(0.7, 0.6, 0.8, 1.0), {"a": 0.7, "b": 0.7})
    return LeakageProbe(target, None, ("m00",), leakage)


WARNINGS = IdentifiabilityWarnings(
    leakage_probes=(probe("trial"), probe("arm")),
    positivity=Positivity(
        cases=2,
        cases_without_trial=0,
        cases_by_trial={"T": {"placebo": 2}},
        arms={"placebo": ArmPositivity(cases=2, trials=("T",), offered_share=1.0, overlap=None)},
        pairs_without_common_trial=(),
    ),
    warnings=(WARNING,),
)


@pytest.fixture(scope="module")
def text(result: EvaluationResult) -> str:
    plots = panels(result.report, result.cases, result.methods)
    return render_html(result.report, plots, EXAMPLES)


def test_the_page_names_sessions_by_the_trials_own_labels(text: str) -> None:
    assert "T2 lesions by m24 (day 730)" in text
    assert "mean count m12" in text
    assert "new lesions observed at m24" in " ".join(text.split())
    assert re.findall(r"\bw0\d\d\b|\bweeks? \d+", text) == []


def test_the_page_requests_nothing(text: str) -> None:
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert all(str(image["src"]).startswith("data:") for image in page.all("img"))
    assert not re.search(r"url\((?!#)|@import", text)
    links = [
        attributes.get(key) for _, attributes in page.tags for key in ("href", "src", "xlink:href")
    ]
    assert all(value is None or value.startswith(("#", "data:")) for value in links)


def test_the_page_is_accessible_to_screen_readers(text: str) -> None:
    page = Page(text)
    assert len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    drawings = [svg for svg in page.all("svg") if "role" in svg]
    assert len(drawings) == 3
    assert all(svg["aria-label"] for svg in drawings)
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_disclaimers_come_before_any_figure(text: str) -> None:
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


def test_verdicts_follow_from_the_numbers() -> None:
    perfect = evaluated(TEST, certain(TEST, TEST.plain)).report
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    chance = evaluated(TEST, certain(TEST, mixed)).report
    who, _, count, where, treatments = (finding.text for finding in findings(perfect))
    assert "100 (100 to 100) of 100 pairs. That is better than the rate of the treatment arm" in who
    assert "so it knows something of the patient beyond the treatment" in who
    assert "better than the rate of the treatment arm" in count
    assert where == treatments == "Not part of this evaluation."
    who, said, count, *_ = (finding.text for finding in findings(chance))
    assert (
        "not distinguishable from a coin's 50. That is worse than the rate of the treatment arm"
        in who
    )
    assert "not shown to know more of the patient" in who
    assert "within what chance allows" in said
    assert "worse than the rate of the treatment arm" in count


def test_a_difference_whose_interval_contains_0_is_not_called_better() -> None:
    report = evaluated(TEST, certain(TEST, TEST.plain)).report
    variant = report.variants["plain"]
    differences = tuple(
        replace(row, difference=replace(row.difference, low=-0.01)) for row in variant.differences
    )
    report = replace(report, variants={"plain": replace(variant, differences=differences)})
    who = findings(report)[0].text
    assert "not distinguishable from the rate of the treatment arm" in who


def test_an_undefined_score_is_called_undefined() -> None:
    report = evaluated(TEST, certain(TEST, TEST.plain)).report
    variant = report.variants["plain"]
    pooled = variant.activity["pooled"]
    scores = replace(pooled.methods["sampled"], auc=Estimate(None))
    pooled = replace(pooled, methods={**pooled.methods, "sampled": scores})
    variant = replace(variant, activity={**variant.activity, "pooled": pooled})
    assert "too few of one kind" in findings(replace(report, variants={"plain": variant}))[0].text


def estimates(part: object) -> Iterator[Estimate]:
    """Yield every estimate of a report, however deep."""
    if isinstance(part, Estimate):
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from estimates(getattr(part, field.name))
    elif isinstance(part, dict | tuple | list):
        for child in part.values() if isinstance(part, dict) else part:
            yield from estimates(child)


def test_estimates_csv_holds_each_estimate_once(result: EvaluationResult) -> None:
    rows = list(csv.DictReader(estimates_csv(result.report).splitlines()))
    assert tuple(rows[0]) == COLUMNS
    keys = [tuple(row[name] for name in COLUMNS[:4]) for row in rows]
    assert len(keys) == len(set(keys))
    assert len(rows) == len(list(estimates(result.report)))
    auc = result.report.variants["plain"].activity["avonex"].methods["sampled"].auc
    (row,) = [
        row for row in rows
        if (row["section"], row["group"], row["metric"], row["method"])
        == ("variants.plain.activity.methods", "avonex", "auc", "sampled")
    ]  # fmt: skip
    assert float(row["value"]) == auc.value
    assert (row["n"], row["positives"]) == ("40", str(int((TEST.plain[TEST.arm == 2] > 0).sum())))


def test_examples_are_chosen_by_rule() -> None:
    count = np.array([0, 3, 0, 9, 1, 0.0])
    probability = np.array([0.1, 0.9, 0.8, 0.7, 0.2, 0.1])
    chosen = {one.row: one.rule for one in choose_examples(count, probability)}
    assert list(chosen) == [3, 1, 0, 4, 2]
    assert chosen[3].startswith("the most new lesions")
    assert chosen[1].startswith("the median")
    assert "largest miss" in chosen[4]
    assert "worst alarm" in chosen[2]


def test_a_read_only_bundle_is_named_in_the_error(result: EvaluationResult, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir(mode=0o555)
    with (
        as_nobody(bundle),
        pytest.raises(
            EvaluationCardError, match=r"bundle: .* got Permission denied; the report is complete"
        ),
    ):
        write_card(bundle, result.report)
    assert not list(bundle.iterdir())


def test_a_subject_chosen_by_two_rules_is_shown_once() -> None:
    (only,) = choose_examples(np.array([2.0]), np.array([0.5]))
    assert "the most new lesions of all; the median" in only.rule
    assert "miss" in only.rule


def test_forecasts_take_their_warnings_from_the_evaluation_card(
    result: EvaluationResult, tmp_path: Path
) -> None:
    digest = result.report.bundle
    assert texts(bundle_warnings(tmp_path, digest)) == (NOT_EVALUATED,)
    write_card(tmp_path, result.report)
    card = read_evaluation_card(tmp_path, digest)
    assert card is not None
    assert card.identifiability_warnings == (WARNING,)
    assert bundle_warnings(tmp_path, digest) == (WARNING,)
    assert SENTENCE in (tmp_path / "EVALUATION.md").read_text()
    assert card_text(result.report).count("Research use only.") == 1


def test_the_evaluation_of_another_bundle_is_refused(
    result: EvaluationResult, tmp_path: Path
) -> None:
    write_card(tmp_path, result.report)
    with pytest.raises(EvaluationCardError, match="expected the evaluation of bundle 000000000000"):
        read_evaluation_card(tmp_path, "0" * 64)
    with pytest.raises(ForecastError, match="run jobs/evaluate.py again"):
        bundle_warnings(tmp_path, "0" * 64)


def test_a_report_is_read_back_as_it_was_written(result: EvaluationResult) -> None:
    assert report_from_json(report_to_json(result.report), source="metrics.json") == result.report


def test_a_report_with_an_unknown_field_is_refused(result: EvaluationResult) -> None:
    content = json.loads(report_to_json(result.report))
    content["variants"]["plain"]["activity"]["avonex"]["methods"]["sampled"]["auroc"] = 0.5
    with pytest.raises(
        EvaluationReportError,
        match=r"here\.json: unknown field variants\.plain\..*\.avonex\.methods\.sampled\.auroc;",
    ):
        report_from_json(json.dumps(content), source="here.json")


def test_a_report_of_another_schema_or_with_a_wrong_value_is_refused(
    result: EvaluationResult,
) -> None:
    content = json.loads(report_to_json(result.report))
    with pytest.raises(EvaluationReportError, match="in schema 11, got 10; run jobs/evaluate.py"):
        report_from_json(json.dumps(content | {"schema": 10}), source="here.json")
    with pytest.raises(EvaluationReportError, match=r"samples: Input should be .* got '3'"):
        report_from_json(json.dumps(content | {"samples": "3"}), source="here.json")
    with pytest.raises(EvaluationReportError, match="expected JSON, got the figure NaN"):
        report_from_json(json.dumps(content | {"seed": float("nan")}), source="here.json")


def test_a_figure_that_is_not_a_number_is_not_written(result: EvaluationResult) -> None:
    opening = replace(result.report.opening, in_plane_mm=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        report_to_json(replace(result.report, opening=opening))
