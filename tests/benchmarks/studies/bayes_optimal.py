"""Compare regressions with the Bayes-optimal forecast of simulated patients.

    PYTHONPATH=.:platform python tests/benchmarks/studies/bayes_optimal.py \
        --train 1739 --test 20000

The exact forecast knows the distribution from which patients are simulated
(`lesioncast.simulation.disease`), the true number of each kind of lesion up to week 48, and the
clinical covariates. The count at week 96 follows by Bayes' rule; no forecast from the same data is
better on average. The regressions are fitted on the first patients. Print their scores on the
others, the gain of the exact forecast over each with its 95 % paired bootstrap interval, and the
number of patients at which that interval would just exclude 0.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.arrays import Floats
from lesioncast.evaluation.baselines.baselines import fit_regression_baseline
from lesioncast.evaluation.metrics.bootstrap import (
    ResampledScore,
    bootstrap_weights,
    estimate_difference,
    point_estimate,
    resampled_mean,
)
from lesioncast.evaluation.metrics.scores import (
    log_count_errors,
    resampled_ap,
    resampled_auc,
)
from lesioncast.simulation import disease
from lesioncast.simulation.disease import Patient
from lesioncast.simulation.outcome_law.posterior import (
    COUNTS,
    FRAILTY,
    RESPONSE,
    frailty_posterior,
    probability_at_most,
)
from lesioncast.simulation.settings import SimulationSettings
from tests.benchmarks.studies.covariates import (
    arm_index,
    draw_patients,
    encode_covariates,
    log_lesion_counts,
    parse_study,
)

EARLIER, ASKED = 0, 1  # periods
BOOTSTRAP = 200
SCORES = ("AUC", "average precision", "Brier score", "log-count MSE")


class Forecast(NamedTuple):
    """P(active) [n] and the count [n] with the least log error, for n patients."""

    chance: Floats
    count: Floats


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the patients, forecast them in each way and print both tables."""
    args = parse_study(__doc__, argv, train=1739, test=20000)
    patients = draw_patients(args)
    lesion_counts = log_lesion_counts(patients)
    features = np.column_stack([lesion_counts, encode_covariates(patients, args.train)])
    test = patients[args.train :]
    law = np.stack([posterior(each, SimulationSettings.predictability) for each in test])
    forecasts = {
        "regression on the counts": regression(lesion_counts, patients, args.train),
        "regression on the counts and the record": regression(features, patients, args.train),
        "exact": Forecast(1 - law[:, 0], np.expm1(law @ np.log1p(COUNTS))),
    }
    true = np.array([each.counts[ASKED, arm_index(each)] for each in test], np.float64)
    weights = bootstrap_weights(len(test), draws=BOOTSTRAP, seed=0)
    print("\n".join((*scores(forecasts, true), "", *gains(forecasts, true, weights))))
    paper = log_count_errors(true, law @ COUNTS).mean()
    print(
        f"\nBy its mean count, as in the paper's table 4, the exact log-count MSE is {paper:.3f}."
    )
    return 0


def posterior(patient: Patient, h: float) -> Floats:
    """Return P(count at w096) [count] under the arm received, given the data up to w048.

    The sum over frailty and the response to the arm, given which the two periods are independent.
    """
    arm, age = patient.arm, disease.standardised_age(patient.age)
    weights = disease.score_weights(arm, h)
    centre = (
        weights.severity * h * FRAILTY[:, None] + weights.response * RESPONSE + weights.age * age
    )
    spread = weights.severity * np.sqrt(1 - h**2)
    earlier, asked = (
        probability_at_most(arm, period, centre=centre, spread=spread)
        for period in (EARLIER, ASKED)
    )
    seen = int(patient.counts[EARLIER, arm_index(patient)])
    chance = earlier[..., seen] - (earlier[..., seen - 1] if seen else 0.0)
    belief = (norm.pdf(RESPONSE) * frailty_posterior(patient)[:, None] * chance)[..., None]
    below = (belief * asked).sum(axis=(0, 1)) / belief.sum()
    return np.diff(below, prepend=0.0)


def regression(features: Floats, patients: Sequence[Patient], train: int) -> Forecast:
    """Fit a regression on the first `train` patients and forecast the others."""
    arm = np.array([arm_index(each) for each in patients])
    count = np.array([each.counts[ASKED, arm_index(each)] for each in patients], np.float64)
    model = fit_regression_baseline(
        features[:train], arm[:train], count[:train], arms=len(PAPER_ARM_NAMES)
    )
    test_rows = features[train:], arm[train:]
    return Forecast(model.probability(*test_rows), model.count(*test_rows))


def resampled(forecast: Forecast, true: Floats) -> tuple[ResampledScore, ...]:
    """Return each of `SCORES` in every resample."""
    active, chance = true > 0, forecast.chance
    squares = (chance - active) ** 2
    errors = log_count_errors(true, forecast.count)
    return (
        lambda weights: resampled_auc(active, chance, weights),
        lambda weights: resampled_ap(active, chance, weights),
        lambda weights: resampled_mean(squares, weights),
        lambda weights: resampled_mean(errors, weights),
    )


def scores(forecasts: dict[str, Forecast], true: Floats) -> Iterator[str]:
    """Yield one row per forecast."""
    yield "| forecast | " + " | ".join(SCORES) + " |"
    yield "|" + "---|" * (1 + len(SCORES))
    for name, forecast in forecasts.items():
        cells = [point_estimate(each, len(true)) for each in resampled(forecast, true)]
        yield f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


def gains(forecasts: dict[str, Forecast], true: Floats, weights: Floats) -> Iterator[str]:
    """Yield the last forecast minus each other, and the patients needed to see it."""
    *others, exact = forecasts
    best = resampled(forecasts[exact], true)
    yield f"| {exact} minus | " + " | ".join(f"{name} | patients" for name in SCORES) + " |"
    yield "|" + "---|" * (1 + 2 * len(SCORES))
    for name in others:
        cells = []
        for better, worse in zip(best, resampled(forecasts[name], true), strict=True):
            gain = estimate_difference(better, worse, weights)
            half = (gain.high - gain.low) / 2
            needed = len(true) * (half / gain.value) ** 2
            cells.append(f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) | {needed:.0f}")
        yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
