"""Weights for missing outcomes: a trial with informative dropout, whose true scores are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.analysis.validity.censoring import (
    MIN_MISSING,
    CensoringReport,
    censoring_report,
    censoring_weights,
)
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.features.censoring_table import CensoringTable, censoring_table
from lesioncast.evaluation.features.image_features import measure_case
from lesioncast.evaluation.features.outcomes import EvaluationCases, outcome_table
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.imaging.covariates import fit_covariates
from tests.evaluation.test_report import ARMS, MM3, SETTINGS, TEST, certain, outcomes
from tests.evaluation.validity.test_participants import without
from tests.support.forecast import write_store

BOOTSTRAP = Bootstrap(200, 0)


class Trial:
    """A simulated trial in which patients with many lesions leave, on arm 1 more than on arm 0.

    The forecast knows the risk of patients with few lesions, and guesses for the others, so that
    those who stay flatter it.
    """

    def __init__(self, patients: int, *, informative: bool, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lesions = rng.normal(size=patients)
        self.arm = rng.integers(2, size=patients)
        risk = expit(2 * self.lesions - 0.5)
        self.count = (rng.random(patients) < risk) * (1.0 + rng.poisson(1, patients))
        self.forecast = np.where(self.lesions < 0, risk, rng.random(patients))
        stays = expit(1.2 - 1.25 * self.lesions - 0.5 * self.arm) if informative else 0.7
        self.observed = rng.random(patients) < stays

    def cases(self, rows: np.ndarray) -> EvaluationCases:
        names = tuple(map(str, np.flatnonzero(rows)))
        return EvaluationCases(names, self.arm[rows], self.lesions[rows, None], self.count[rows])

    def method(self, rows: np.ndarray) -> MethodPredictions:
        p = self.forecast[rows]
        return MethodPredictions("m", "m", scores=p[None], counts=1.5 * p)

    def table(self) -> CensoringTable:
        """Return all patients, those with an outcome first."""
        order = np.argsort(~self.observed, kind="stable")
        return CensoringTable(self.lesions[order, None], self.arm[order], self.observed[order])

    def report(self) -> CensoringReport | None:
        stays = self.observed
        return censoring_report(
            self.table(), self.cases(stays), [self.method(stays)], arms=2, bootstrap=BOOTSTRAP
        )

    def true_scores(self) -> dict[str, float]:
        """Return the scores over all patients, those who left included."""
        active = self.count > 0
        return {
            "auc": roc_auc_score(active, self.forecast),
            "brier": float(np.mean((self.forecast - active) ** 2)),
            "log_mse": float(np.mean((np.log1p(1.5 * self.forecast) - np.log1p(self.count)) ** 2)),
        }


def test_weights_remove_most_of_the_bias_of_every_score() -> None:
    observed_bias: dict[str, list[float]] = {}
    weighted_bias: dict[str, list[float]] = {}
    for seed in range(12):
        trial = Trial(2000, informative=True, seed=seed)
        report = trial.report()
        assert report is not None
        assert report.missing == (~trial.observed).sum()
        assert report.effective_sample_size < 0.95 * report.cases
        scores = report.methods["m"]
        for name, true in trial.true_scores().items():
            observed_bias.setdefault(name, []).append(getattr(scores.observed, name).value - true)
            weighted_bias.setdefault(name, []).append(getattr(scores.weighted, name).value - true)
    for name, biases in observed_bias.items():
        bias, error = np.mean(biases), np.std(biases) / np.sqrt(len(biases))
        assert abs(bias) > 3 * error  # those who stay flatter the forecast by more than chance
        assert abs(np.mean(weighted_bias[name])) < 0.4 * abs(bias)


def test_the_weighted_interval_holds_the_score_of_all_patients_where_the_plain_one_does_not() -> (
    None
):
    trial = Trial(4000, informative=True)
    report = trial.report()
    assert report is not None
    true = trial.true_scores()["brier"]
    scores = report.methods["m"]
    assert not scores.observed.brier.low <= true <= scores.observed.brier.high
    assert scores.weighted.brier.low <= true <= scores.weighted.brier.high


def test_where_dropout_is_by_chance_weights_change_nothing() -> None:
    report = Trial(6000, informative=False).report()
    assert report is not None
    scores = report.methods["m"]
    for name in ("auc", "brier", "log_mse"):
        observed, weighted = getattr(scores.observed, name), getattr(scores.weighted, name)
        assert weighted.value == pytest.approx(observed.value, abs=0.005)
    assert report.effective_sample_size > 0.99 * report.cases
    assert 0.8 < report.smallest_weight <= report.largest_weight < 1.2


def test_weighted_scores_equal_scikit_learns_with_the_same_weights() -> None:
    trial = Trial(400, informative=True)
    report = trial.report()
    assert report is not None
    weight = censoring_weights(trial.table(), arms=2)
    active, p = trial.count[trial.observed] > 0, trial.forecast[trial.observed]
    scores = report.methods["m"]
    assert scores.weighted.auc.value == pytest.approx(
        roc_auc_score(active, p, sample_weight=weight)
    )
    assert scores.weighted.brier.value == pytest.approx(
        np.average((p - active) ** 2, weights=weight)
    )
    assert scores.observed.auc.value == pytest.approx(roc_auc_score(active, p))
    kish = weight.sum() ** 2 / (weight**2).sum()
    assert report.effective_sample_size == pytest.approx(kish)


def test_weights_are_the_inverse_of_the_share_that_stays_where_groups_are_few() -> None:
    # Of 400 patients with the feature 100 stay, of 400 without it 300: weights 2 and 2/3.
    feature = np.repeat([1.0, 0.0], 400)
    observed = np.concatenate([np.arange(400) < 100, np.arange(400) < 300])
    order = np.argsort(~observed, kind="stable")
    arm = np.zeros(800, np.int64)
    table = CensoringTable(feature[order, None], arm, observed[order])
    weight = censoring_weights(table, arms=1)
    with_feature = feature[order][observed[order]] == 1
    assert weight[with_feature] == pytest.approx(2, rel=0.02)
    assert weight[~with_feature] == pytest.approx(2 / 3, rel=0.02)
    assert weight[with_feature].sum() == pytest.approx(weight[~with_feature].sum(), rel=0.02)


def test_few_missing_outcomes_give_no_weights_and_a_sentence() -> None:
    trial = Trial(300, informative=True)
    left = np.flatnonzero(~trial.observed)
    trial.observed[left[MIN_MISSING - 1 :]] = True
    assert trial.report() is None
    trial.observed[left[MIN_MISSING - 1]] = False
    assert trial.report() is not None
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    inputs = EvaluationInputs(outcomes(600, seed=1), TEST, certain(TEST, TEST.plain))
    text = render_markdown(evaluate(inputs, context, SETTINGS).report)
    assert f"fewer than {MIN_MISSING} patients" in text


def test_the_report_states_the_effective_sample_size() -> None:
    train = outcomes(600, seed=1)
    missing = outcomes(60, seed=5)
    features = np.concatenate([TEST.image_features, train.image_features, missing.image_features])
    table = CensoringTable(
        features, np.concatenate([TEST.arm, train.arm, missing.arm]), np.arange(900) < 840
    )
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    inputs = EvaluationInputs(train, TEST, certain(TEST, TEST.plain), censoring=table)
    report = evaluate(inputs, context, SETTINGS).report
    assert report.censoring is not None
    assert (report.censoring.cases, report.censoring.missing) == (240, 60)
    text = render_markdown(report)
    assert f"240 test cases count as {report.censoring.effective_sample_size:.0f}" in text
    assert "monte_carlo" not in report.censoring.methods


def test_the_table_puts_test_cases_first_and_those_without_outcome_last(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=4, train=5)
    gone = [without(case, outcome=True) for case in store.cases[7:]]
    train, test = store.cases[4:7], store.cases[:4]
    covariates = fit_covariates(("age", "sex"), train)
    spacing = store.spec.spacing
    measured = {
        case.index: measure_case(case.index, store.read(case.index), spacing)
        for case in store.cases
    }
    tables = [outcome_table(cases, list(measured.values()), covariates) for cases in (test, train)]
    table = censoring_table(tables, gone, measured, covariates)
    assert table.observed.tolist() == [True] * 7 + [False] * 2
    assert table.arm.tolist() == [case.arm_index for case in (*test, *train, *gone)]
    age = tables[0].image_features.shape[1]  # the first covariate comes behind the image features
    ages = [covariates[0].encode(case.covariates["age"]) for case in (*test, *train, *gone)]
    assert table.features[:, age] == pytest.approx(ages)
    complete = censoring_table(tables, (), measured, covariates)
    assert complete.observed.all()
    assert replace(complete, observed=table.observed[:7]).features == pytest.approx(
        table.features[:7], nan_ok=True
    )
