"""The flow of participants, the comparison of arms, and the diagram, against counts by hand."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.analysis.validity.participants import (
    TOTAL,
    UNKNOWN_ARM,
    FlowCounts,
    Participant,
    ParticipantFlow,
    Stage,
    participant_flow,
)
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.reporting.drawings.flow_diagram import flow_svg
from lesioncast.evaluation.reporting.html import render_html
from lesioncast.evaluation.reporting.json_io import report_from_json, report_to_json
from lesioncast.evaluation.reporting.markdown.participants import describe_missing
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.trial_participants import trial_participants
from storage import Case, Exclusion, Store
from tests.evaluation.test_report import ARMS as PAPER_ARMS
from tests.evaluation.test_report import MM3, SETTINGS, TEST, certain, outcomes
from tests.support.bids import ARMS
from tests.support.forecast import write_store


def flow_of(participants: Sequence[Participant], arms: Sequence[str] = ARMS) -> ParticipantFlow:
    flow = participant_flow(participants, arms, seed=0)
    assert flow is not None
    return flow


def with_missing(missing: dict[str, int], *, of: int) -> list[Participant]:
    """Return `of` participants of each arm, some of whom have no outcome."""
    return [
        Participant(arm, Stage.WITHOUT_OUTCOME if place < number else Stage.TRAINING)
        for arm, number in missing.items()
        for place in range(of)
    ]


def without(case: Case, *, outcome: bool = False, arm: bool = False) -> Case:
    """Return the case without its outcome or its arm, as a conversion would record it."""
    present = case.present.copy()
    present[2, 3] = not outcome
    changed = replace(case, present=present, split="unlabelled")
    return replace(changed, arm=None, arm_index=-1) if arm else changed


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write six test and five training cases, one of them without outcome and one without arm.

    Three more subjects were excluded, one of them for two reasons.
    """
    written = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=6, train=5)
    cases = list(written.cases)
    cases[7], cases[9] = without(cases[7], outcome=True), without(cases[9], arm=True)
    excluded = (
        Exclusion("sub-90", "missing session", "expected w048, got none", "w048"),
        Exclusion("sub-90", "duplicate", "expected one row, got two"),
        Exclusion("sub-91", "missing session", "expected w048, got none", "w048"),
        Exclusion("sub-92", "unknown labels", "expected aseg, got none"),
    )
    return replace(written, table=replace(written.table, cases=tuple(cases), excluded=excluded))


def test_every_participant_is_counted_once_under_the_arm_of_the_table(
    store: Store, tmp_path: Path
) -> None:
    rows = [("participant_id", "treatment_arm"), ("sub-90", ARMS[0]), ("sub-91", ARMS[1])]
    table = tmp_path / "bids/participants.tsv"
    table.write_text("".join("\t".join(row) + "\n" for row in rows))
    flow = flow_of(trial_participants(store, {0, 1, 2}, tmp_path / "bids"))
    assert flow.total == FlowCounts(
        allocated=14, excluded=3, without_arm=1, without_outcome=1, training=3, validation=0,
        test=6, scored=3,
    )  # fmt: skip
    assert (flow.total.converted, flow.total.with_outcome) == (11, 9)
    assert list(flow.arms) == [*ARMS, UNKNOWN_ARM, TOTAL]
    # Arms alternate. Cases 0, 3, 6 of the first arm have an outcome, case 9 has lost its arm.
    assert flow.arms[ARMS[0]] == FlowCounts(4, 1, 0, 0, 1, 0, 2, 1)
    # Case 7, of the second arm, has no outcome.
    assert flow.arms[ARMS[1]] == FlowCounts(5, 1, 0, 1, 1, 0, 2, 1)
    assert flow.arms[UNKNOWN_ARM] == FlowCounts(2, 1, 1, 0, 0, 0, 0, 0)
    assert flow.exclusions == {"missing session": 2, "unknown labels": 1}
    parts = [one for name, one in flow.arms.items() if name != TOTAL]
    for name, number in vars(flow.total).items():
        assert sum(getattr(one, name) for one in parts) == number


def test_without_the_trials_table_the_arms_of_excluded_subjects_are_not_known(
    store: Store, tmp_path: Path
) -> None:
    flow = flow_of(trial_participants(store, (), tmp_path / "moved"))
    assert flow.arms[UNKNOWN_ARM].excluded == 3
    assert flow.total.allocated == 14


def test_arms_that_lose_patients_at_different_rates_are_named() -> None:
    flow = flow_of(with_missing(dict(zip(ARMS, (5, 40, 8), strict=True)), of=100))
    assert flow.missing_by_arm_p is not None
    assert flow.missing_by_arm_p < 0.001
    text = describe_missing(flow)
    assert f"from 5.0% on {ARMS[0]} to 40.0% on {ARMS[1]}" in text
    assert "more often on some arms than on others" in text
    assert "p < 0.001" in text
    assert "53 of 300" in text


def test_equal_losses_are_not_called_a_difference() -> None:
    flow = flow_of(with_missing(dict.fromkeys(ARMS, 10), of=100))
    assert flow.missing_by_arm_p == pytest.approx(1.0)
    assert "not shown to differ" in describe_missing(flow)
    complete = flow_of(with_missing(dict.fromkeys(ARMS, 0), of=100))
    assert complete.missing_by_arm_p is None
    assert describe_missing(complete) == "Every participant has an outcome."


def test_the_p_value_agrees_with_the_chi_squared_distribution_where_counts_are_large() -> None:
    missing = dict(zip(ARMS, (110, 130, 128), strict=True))
    table = [[500 - number, number] for number in missing.values()]
    expected = chi2_contingency(table, correction=False).pvalue
    assert 0.1 < expected < 0.4
    flow = flow_of(with_missing(missing, of=500))
    assert flow.missing_by_arm_p == pytest.approx(expected, abs=0.03)


def test_the_p_value_is_uniform_where_arms_lose_patients_alike() -> None:
    rng = np.random.default_rng(1)
    values = [
        flow_of(
            with_missing({arm: int(rng.binomial(60, 0.2)) for arm in ARMS}, of=60)
        ).missing_by_arm_p
        for _ in range(60)
    ]
    assert sum(value < 0.05 for value in values if value is not None) <= 8
    assert 0.3 < np.mean([value for value in values if value is not None]) < 0.7


def big_flow() -> ParticipantFlow:
    kinds = ["missing session", "one file in two roles", "unknown labels", "header", "a", "b & c"]
    participants = with_missing(dict(zip(ARMS, (5, 40, 8), strict=True)), of=100)
    participants += [
        Participant(ARMS[0], Stage.EXCLUDED, exclusion=kind)
        for number, kind in enumerate(kinds)
        for _ in range(20 - number)
    ]
    participants += [Participant(ARMS[1], Stage.TEST, scored=place < 31) for place in range(33)]
    return flow_of([*participants, Participant(None, Stage.WITHOUT_ARM)])


def test_the_diagram_shows_the_numbers_of_the_record() -> None:
    flow = big_flow()
    svg = ElementTree.fromstring(flow_svg(flow))
    texts = ["".join(one.itertext()) for one in svg.iter() if one.tag.endswith("text")]
    boxes = dict(zip(texts, texts[1:], strict=False))
    assert boxes["Allocated"] == str(flow.total.allocated)
    assert boxes["Excluded at conversion"] == str(flow.total.excluded) == "105"
    assert boxes["Converted"] == str(flow.total.converted)
    assert boxes["With arm and outcome"] == str(flow.total.with_outcome)
    assert (boxes["Training"], boxes["Validation"], boxes["Test"]) == ("247", "0", "33")
    assert boxes["Scored here"] == "31"
    assert {"arm not known: 1", "no outcome: 53", "missing session: 20"} <= set(texts)
    assert "other reasons: 15" in texts
    assert "Training: 247." in svg.attrib["aria-label"]


def test_boxes_of_the_diagram_lie_inside_it_and_do_not_overlap() -> None:
    svg = ElementTree.fromstring(flow_svg(big_flow()))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    boxes = [
        tuple(float(one.attrib[name]) for name in ("x", "y", "width", "height"))
        for one in svg.iter()
        if one.tag.endswith("rect")
    ]
    assert len(boxes) == 9
    for place, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        for other_x, other_y, other_w, other_h in boxes[:place]:
            apart = x >= other_x + other_w or other_x >= x + w
            assert apart or y >= other_y + other_h or other_y >= y + h


def test_the_report_has_the_diagram_and_its_table() -> None:
    participants = [
        Participant(PAPER_ARMS[arm], Stage.TEST, scored=True) for arm in TEST.arm.tolist()
    ]
    participants += [Participant(PAPER_ARMS[0], Stage.TRAINING)] * 600
    context = EvaluationContext(PAPER_ARMS, MM3, "f" * 64, 0)
    inputs = EvaluationInputs(
        outcomes(600, seed=1), TEST, certain(TEST, TEST.plain), participants=participants
    )
    report = evaluate(inputs, context, SETTINGS).report
    assert report.participants is not None
    assert report.participants.total.scored == report.cases.test
    assert "| total | 840 | 0 | 840 | 0 | 0 | 600 | 0 | 240 | 240 |" in render_markdown(report)
    page = render_html(report, (), ())
    assert "Who is in these numbers" in page
    assert page.count("<svg") == 1
    assert re.search(r"Every participant has\s+an outcome", page)
    assert report_from_json(report_to_json(report), source="metrics.json") == report
    none = replace(report, participants=None)
    assert "Who is in these numbers" not in render_html(none, (), ())
