"""Score a bundle's closed-form forecasts on every test case of a trial, without sampling.

    PYTHONPATH=.:platform python tests/benchmarks/prognostic_prior/closed_form_scores.py \
        --bundle out/demo/bundle --store out/final-test/store.zarr

The forecast is that of the lesion load prior, from all images, under the arm received: P(active)
and the expectation of log(1 + count). The networks have no part in it. Baselines are fitted on the
training cases of the store, and calibration on its validation cases. Print the scores, the forecast
minus each baseline (paired), and the coverage of the conformal intervals, with 95 % bootstrap
intervals over cases.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.calibration.conformal import LogCountForecast, prediction_intervals
from lesioncast.calibration.fit import Calibration, calibrate
from lesioncast.cluster.connection import RaySettings, ray_cluster
from lesioncast.evaluation.analysis.scoring import factual_summaries
from lesioncast.evaluation.baselines.baselines import (
    arm_statistics,
    fit_regression_baseline,
    lookup_by_arm,
)
from lesioncast.evaluation.closed_form import closed_form_summaries, has_closed_form
from lesioncast.evaluation.features.outcomes import EvaluationCases, OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import (
    bootstrap_weights,
    estimate_difference,
    estimate_mean,
    estimate_of,
)
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummaries
from lesioncast.evaluation.run import measure_outcomes, select_evaluation_cases
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.training_data import check_unseen
from lesioncast.jobs.command.runner import configure_logging
from lesioncast.markdown import format_estimate
from storage import open_store, parse_location
from tests.benchmarks.studies.bayes_optimal import SCORES, Forecast, resampled

BOOTSTRAP = 1000
PRIOR = "lesion-load prior, closed form"


def main(argv: Sequence[str] | None = None) -> int:
    """Forecast, score and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--store", type=parse_location, required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    configure_logging()
    store, bundle = open_store(args.store), load_bundle(args.bundle.absolute())
    if not has_closed_form(bundle, opening=False):
        raise SystemExit(f"{args.bundle}: expected a bundle with lesion loads, got one without")
    check_compatible(bundle, store)
    cases = select_evaluation_cases(store, EvaluationSettings())
    check_unseen(bundle, cases.forecast)
    with ray_cluster(RaySettings()):
        tables = measure_outcomes(store, cases, workers=args.workers)
        stated = closed_form_summaries(store, cases.forecast, bundle.path, workers=args.workers)
    train, test = (table.cases(opening=False) for table in (tables.train, tables.test))
    forecasts = {
        **baselines(train, test, arms=len(store.spec.arms)),
        PRIOR: closed_form(tables.test, stated),
    }
    print("\n".join(score_tables(forecasts, test.count)))
    if tables.validation is not None:
        calibration = calibrate(
            tables.validation.cases(opening=False).count,
            log_counts(tables.validation, stated),
            log_odds(tables.validation, stated),
        )
        print("", *calibration_lines(calibration, test, log_counts(tables.test, stated)), sep="\n")
    return 0


def closed_form(table: OutcomeTable, stated: EnsembleSummaries) -> Forecast:
    """Return P(active) and the count with the least log error, as stated."""
    summaries = factual_summaries(table, stated)
    return Forecast(
        np.array([each.p_active(opening=False) for each in summaries]),
        np.expm1(log_counts(table, stated).mean),
    )


def log_counts(table: OutcomeTable, stated: EnsembleSummaries) -> LogCountForecast:
    """Return mean and spread of log(1 + count), as stated."""
    summaries = factual_summaries(table, stated)
    return LogCountForecast(
        np.array([each.log_lesions(opening=False) for each in summaries]),
        np.array([each.log_sd(opening=False) for each in summaries]),
    )


def log_odds(table: OutcomeTable, stated: EnsembleSummaries) -> Floats:
    """Return the log odds of P(active), as stated."""
    return np.array([each.log_odds(opening=False) for each in factual_summaries(table, stated)])


def baselines(train: EvaluationCases, test: EvaluationCases, *, arms: int) -> dict[str, Forecast]:
    """Fit the arm's statistics and the regression on the training cases; forecast the test."""
    arm = arm_statistics(train.arm, train.count, arms=arms)
    names = tuple(map(str, range(arms)))
    model = fit_regression_baseline(train.image_features, train.arm, train.count, arms=arms)
    return {
        "arm rate, arm mean of log counts": Forecast(
            lookup_by_arm(arm.activity, test.arm, names),
            np.expm1(lookup_by_arm(arm.mean_log_count, test.arm, names)),
        ),
        "regression on image features": Forecast(
            model.probability(test.image_features, test.arm),
            model.count(test.image_features, test.arm),
        ),
    }


def score_tables(forecasts: dict[str, Forecast], true: Floats) -> Iterator[str]:
    """Yield a row for each forecast, then the last minus each other."""
    weights = bootstrap_weights(len(true), draws=BOOTSTRAP, seed=0)
    scores = {name: resampled(forecast, true) for name, forecast in forecasts.items()}
    yield f"| {len(true)} cases, {int((true > 0).sum())} active | " + " | ".join(SCORES) + " |"
    yield "|" + "---|" * (1 + len(SCORES))
    for name, row in scores.items():
        cells = [format_estimate(estimate_of(score, weights)) for score in row]
        yield f"| {name} | " + " | ".join(cells) + " |"
    *others, last = scores
    for name in others:
        cells = [
            format_estimate(estimate_difference(score, other, weights), digits=4)
            for score, other in zip(scores[last], scores[name], strict=True)
        ]
        yield f"| {last} minus {name} | " + " | ".join(cells) + " |"


def calibration_lines(
    calibration: Calibration, test: EvaluationCases, forecast: LogCountForecast
) -> Iterator[str]:
    """Yield the recalibration that validation cases ask for, and the coverage on test cases."""
    curve = calibration.platt_scaling
    if curve is not None:
        yield (
            f"Platt scaling on {calibration.cases} validation cases: slope {curve.slope:.3f}, "
            f"intercept {curve.intercept:.3f}."
        )
    weights = bootstrap_weights(len(test.count), draws=BOOTSTRAP, seed=0)
    for quantile in calibration.quantiles:
        low, high = prediction_intervals(forecast, quantile.score)
        covered = ((low <= test.count) & (test.count <= high)).astype(np.float64)
        yield (
            f"Intervals of {quantile.level:.0%}: {format_estimate(estimate_mean(covered, weights))}"
            f" of the test cases, mean width {np.mean(high - low):.2f} lesions."
        )


if __name__ == "__main__":
    sys.exit(main())
