"""The TRIPOD+AI checklist: all items, and every place that it names exists."""

import re
from pathlib import Path

import pytest

from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.analysis.validity.participants import Participant, Stage
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.reporting.tripod_ai import ITEMS, Answer, ChecklistItem
from tests.architecture.test_documents import anchors
from tests.architecture.tree import ROOT
from tests.evaluation.test_report import ARMS, MM3, SETTINGS, TEST, certain, outcomes

# How many parts each of the 27 items has, in order (Collins et al. 2024, table 2).
PARTS = (1, 1, 3, 1, 2, 3, 1, 3, 3, 1, 1, 7, 1, 1, 1, 1, 1, 6, 1, 3, 1, 1, 2, 1, 1, 1, 3)


@pytest.fixture(scope="module")
def headings() -> set[str]:
    """Return the headings of tables.md of an evaluation with participants."""
    inputs = EvaluationInputs(
        outcomes(600, seed=1),
        TEST,
        certain(TEST, TEST.plain),
        participants=[Participant(ARMS[0], Stage.TEST)],
    )
    report = evaluate(inputs, EvaluationContext(ARMS, MM3, "f" * 64, 0), SETTINGS).report
    return set(re.findall(r"^#+ (.+)$", render_markdown(report), re.M))


def test_all_27_items_are_there_with_their_parts() -> None:
    expected = [
        f"{number}{part}"
        for number, parts in enumerate(PARTS, 1)
        for part in ([""] if parts == 1 else "abcdefg"[:parts])
    ]
    assert [item.number for item in ITEMS] == expected


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.number)
def test_places_exist(item: ChecklistItem, headings: set[str]) -> None:
    assert set(item.sections) <= headings
    for page in item.pages:
        path, _, anchor = page.partition("#")
        assert (ROOT / path).is_file(), page
        assert not anchor or anchor in anchors(Path(path)), page


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.number)
def test_an_answer_has_a_place_and_no_answer_has_none(item: ChecklistItem) -> None:
    answered = item.answer in (Answer.YES, Answer.PARTLY)
    assert answered == bool(item.sections or item.pages)


def test_the_report_lists_every_item(headings: set[str]) -> None:
    assert "TRIPOD+AI checklist" in headings
    inputs = EvaluationInputs(outcomes(600, seed=1), TEST, certain(TEST, TEST.plain))
    report = evaluate(inputs, EvaluationContext(ARMS, MM3, "f" * 64, 0), SETTINGS).report
    text = render_markdown(report)
    for item in ITEMS:
        assert f"| {item.number} | {item.topic} | {item.answer.value} |" in text
    assert f"Of {len(ITEMS)} items" in text
