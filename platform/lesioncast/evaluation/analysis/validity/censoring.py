"""Scores weighted by the inverse probability of having an outcome (IPCW).

Patients who leave a trial may differ from those who stay. Where all that decides who stays was
measured before, weights make the score of those who stay hold for all patients with images (Robins
and Finkelstein 2000; stabilised and truncated as in Cole and Hernan 2008).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.censoring_table import CensoringTable
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics import scores
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    ResampledScore,
    estimate_of,
    resampled_mean,
)
from lesioncast.evaluation.metrics.estimate import ByMethod, CaseCount, Estimate, PositiveCount

# With fewer cases without an outcome a model of who has none is mostly noise.
MIN_MISSING = 20
TRUNCATION = (0.01, 0.99)


@dataclass(frozen=True)
class HeadlineScores:
    """Scores of one method; `log_mse` is None for methods without a count."""

    auc: Estimate
    brier: Estimate
    log_mse: Estimate | None


@dataclass(frozen=True)
class WeightingComparison:
    """Scores of one method as observed, and weighted for the cases without an outcome."""

    observed: HeadlineScores
    weighted: HeadlineScores


@dataclass(frozen=True)
class CensoringReport:
    """Headline scores with and without weights.

    `missing` cases have an arm and images but no outcome. The effective sample size is Kish's,
    (sum w)^2 / sum w^2 of the weights w of the test cases.
    """

    cases: CaseCount
    positives: PositiveCount
    missing: int
    effective_sample_size: float
    smallest_weight: float
    largest_weight: float
    methods: ByMethod[WeightingComparison]


def censoring_report(
    table: CensoringTable | None,
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: int,
    bootstrap: Bootstrap,
) -> CensoringReport | None:
    """Weight the scores of the test `cases`, the first rows of `table`.

    None where fewer than `MIN_MISSING` cases lack an outcome. The intervals take the weights as
    given: the uncertainty of the model behind them is not in.
    """
    if table is None or (~table.observed).sum() < MIN_MISSING:
        return None
    weight = censoring_weights(table, arms=arms)[: len(cases.arm)]
    resamples = bootstrap.weights(len(cases.arm))
    everyone = np.ones(len(cases.arm))
    return CensoringReport(
        cases=len(cases.arm),
        positives=int(cases.active.sum()),
        missing=int((~table.observed).sum()),
        effective_sample_size=float(weight.sum() ** 2 / (weight**2).sum()),
        smallest_weight=float(weight.min()),
        largest_weight=float(weight.max()),
        methods={
            method.key: WeightingComparison(
                observed=_headline_scores(cases, method, everyone, resamples),
                weighted=_headline_scores(cases, method, weight, resamples),
            )
            for method in methods
            if method.scores is not None and len(method.scores) == 1
        },
    )


def censoring_weights(table: CensoringTable, *, arms: int) -> Floats:
    """Return the weight of each case with an outcome, [observed case].

    It is the share of cases with an outcome, divided by this case's probability of having one
    (logistic regression on arm and features), truncated at quantiles of all weights.
    """
    design = np.column_stack([table.features, np.eye(arms)[table.arm]])
    model = make_pipeline(
        SimpleImputer(
            strategy="constant", fill_value=0.0, add_indicator=True, keep_empty_features=True
        ),
        StandardScaler(),
        LogisticRegression(max_iter=2000),
    ).fit(design, table.observed)
    probability = model.predict_proba(design[table.observed])[:, list(model.classes_).index(True)]
    weight = table.observed.mean() / np.asarray(probability, np.float64)
    low, high = np.quantile(weight, TRUNCATION)
    return np.asarray(weight.clip(low, high), np.float64)


def _headline_scores(
    cases: EvaluationCases, method: MethodPredictions, weight: Floats, resamples: Floats
) -> HeadlineScores:
    assert method.scores is not None
    active, probability = cases.active, method.scores[0]
    log_mse = None
    if method.counts is not None:
        errors = scores.log_count_errors(cases.count, method.counts)
        log_mse = estimate_of(_weighted_mean(errors, weight), resamples)
    return HeadlineScores(
        auc=estimate_of(_weighted_auc(active, probability, weight), resamples),
        brier=estimate_of(_weighted_mean((probability - active) ** 2, weight), resamples),
        log_mse=log_mse,
    )


def _weighted_auc(active: Bools, probability: Floats, weight: Floats) -> ResampledScore:
    return lambda resamples: scores.resampled_auc(active, probability, resamples * weight)


def _weighted_mean(values: Floats, weight: Floats) -> ResampledScore:
    return lambda resamples: resampled_mean(values, resamples * weight)
