"""Subgroups by sex, age and trial, with scores that equal those of the subgroup alone."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.analysis.validity.subgroups import SubgroupVariable, subgroup_report
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.features.subgroup_labels import subgroup_labels
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.markdown import DASH
from tests.evaluation.test_report import ARMS, MM3, SETTINGS, TEST, certain, outcomes
from tests.support.forecast import write_store

CASES = TEST.cases(opening=False)
SEX = tuple("FM"[row % 5 == 0] for row in range(len(CASES.arm)))
WOMEN = np.array(SEX) == "F"


def scored(probability: np.ndarray, label: tuple[str | None, ...] = SEX) -> SubgroupVariable:
    methods = [
        MethodPredictions("m", "m", scores=np.asarray(probability, float)[None]),
        MethodPredictions("random", "random", scores=np.zeros((2, len(CASES.arm)))),
        MethodPredictions("counts", "counts", counts=np.zeros(len(CASES.arm))),
    ]
    return subgroup_report({"sex": label}, CASES, methods, bootstrap=Bootstrap(200, 0))["sex"]


def test_scores_of_a_subgroup_are_those_of_its_cases_alone() -> None:
    probability = np.random.default_rng(0).random(len(CASES.arm))
    groups = scored(probability).groups
    assert {name: group.cases for name, group in groups.items()} == {"F": 192, "M": 48}
    for name, member in (("F", WOMEN), ("M", ~WOMEN)):
        active, p = CASES.active[member], probability[member]
        own = groups[name].methods["m"]
        assert list(groups[name].methods) == ["m"]  # methods without one P(active) a case
        assert groups[name].positives == active.sum()
        assert own.auc.value == pytest.approx(roc_auc_score(active, p))
        assert own.brier.value == pytest.approx(brier_score_loss(active, p))
        assert own.calibration_in_the_large.value == pytest.approx(p.mean() - active.mean())
        assert own.auc.low < own.auc.value < own.auc.high


def test_an_oracle_is_perfect_and_a_constant_is_chance_in_every_subgroup() -> None:
    for group in scored(CASES.active).groups.values():
        scores = group.methods["m"]
        assert (scores.auc.value, scores.brier.value) == (1, 0)
        assert scores.calibration_in_the_large.value == 0
    for group in scored(np.full(len(CASES.arm), 0.9)).groups.values():
        scores = group.methods["m"]
        assert scores.auc.value == 0.5
        assert scores.calibration_in_the_large.low > 0.2  # far too high, and said so


def test_a_subgroup_of_one_class_has_no_auc_and_unknown_values_are_in_no_subgroup() -> None:
    label = tuple(
        None if row < 20 else "active" if active else "quiet"
        for row, active in enumerate(CASES.active)
    )
    groups = scored(np.random.default_rng(0).random(len(CASES.arm)), label).groups
    assert sum(group.cases for group in groups.values()) == len(CASES.arm) - 20
    for group in groups.values():
        assert group.methods["m"].auc.value is None
        assert group.methods["m"].brier.value is not None


def test_age_is_divided_at_the_median_of_the_training_cases(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=6, train=5)
    labels = subgroup_labels(store.select(split="train"), store.select(split="test"))
    # Ages are 30, 32 ... 50; those of the training cases, 42 to 50, have the median 46.
    assert labels["age"] == ("up to 46 years",) * 6
    labels = subgroup_labels(store.select(split="test"), store.select(split="train"))
    assert labels["age"] == ("above 35 years",) * 5
    assert labels["sex"] == tuple("FMFMF")
    assert "trial" not in labels  # no case names one


def test_the_report_has_a_row_for_each_subgroup() -> None:
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    trial = tuple("opera" if arm == 5 else "bravo" for arm in TEST.arm)
    inputs = EvaluationInputs(
        outcomes(600, seed=1),
        TEST,
        certain(TEST, TEST.plain),
        subgroups={"sex": SEX, "trial": trial},
    )
    report = evaluate(inputs, context, SETTINGS).report
    assert list(report.subgroups) == ["sex", "trial"]
    text = render_markdown(report)
    assert "| sex: F | " in text
    line = next(line for line in text.splitlines() if line.startswith("| trial: opera |"))
    assert line.startswith(f"| trial: opera | 0 of 40 | {DASH} |")  # nobody on arm 5 is active
    without = evaluate(
        EvaluationInputs(outcomes(600, seed=1), TEST, certain(TEST, TEST.plain)), context, SETTINGS
    ).report
    assert without.subgroups == {}
    assert "there are no subgroups" in render_markdown(without)
