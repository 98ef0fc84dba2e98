"""Exact distributions of a simulated patient's counts, given what is recorded at w000.

They follow by Bayes' rule from the law in `simulation.disease`. The record of w000 (lesions,
relapses, age, disease duration) informs about frailty alone. The response to an arm shows only
after w000, so it keeps its prior distribution. No forecast from the same record is better on
average.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import nbinom, norm, poisson

from lesioncast.arrays import Floats
from lesioncast.simulation import disease
from lesioncast.simulation.disease import Patient

# Grids of the three standard normal latents. Sums over them replace integrals.
FRAILTY = np.linspace(-5, 5, 81)
SEVERITY = np.linspace(-5, 5, 201)
RESPONSE = np.linspace(-4, 4, 33)
COUNTS = np.arange(disease.MAX_COUNT + 1.0)
OUTCOME = disease.PERIODS.index("w096")
# A count is a step function of the latents. Steps are smoothed by half a cell of SEVERITY, without
# which a sum over its values would miss up to a cell of probability.
_SMOOTHING = float(SEVERITY[1] - SEVERITY[0]) / 2


@dataclass(frozen=True)
class Moments:
    """Conditional mean [arm] and covariance [arm, arm] of one outcome under every arm."""

    mean: Floats
    covariance: Floats

    def effect_variance(self, arm: int, reference: int) -> float:
        """Return the variance of the outcome under `arm` minus that under `reference`.

        It is the part of the patient's own effect that nobody can know: the expected squared error
        of the best forecast.
        """
        own, cross = np.diag(self.covariance), self.covariance[arm, reference]
        return float(max(own[arm] + own[reference] - 2 * cross, 0.0))


@dataclass(frozen=True)
class CounterfactualMoments:
    """Moments of a patient's activity (0 or 1) and count at w096, given the record of w000."""

    activity: Moments
    count: Moments


def frailty_posterior(patient: Patient) -> Floats:
    """Return P(frailty | record of w000) at each of FRAILTY, [frailty]; the sum is 1."""
    age = disease.standardised_age(patient.age)
    frail = norm.pdf(
        FRAILTY,
        disease.AGE_FRAILTY_CORRELATION * age,
        np.sqrt(1 - disease.AGE_FRAILTY_CORRELATION**2),
    )
    # A Poisson count whose rate has a gamma distribution is negative binomial.
    shape, seen = disease.GAD_SHAPE, patient.gad_count
    success = shape / (shape + disease.gad_mean(FRAILTY))
    gad_chance = (
        nbinom.pmf(seen, shape, success)
        if seen < disease.MAX_GAD
        else nbinom.sf(seen - 1, shape, success)
    )
    median = np.log(disease.t2_median(FRAILTY, age, patient.duration))
    low = patient.t2_count
    edges = (
        -np.inf if low == disease.MIN_T2 else np.log(low),
        np.inf if low == disease.MAX_T2 else np.log(low + 1),
    )
    below, above = (ndtr((edge - median) / disease.T2_LOG_SD) for edge in edges)
    extra_relapses = poisson.pmf(patient.relapses - 1, disease.expected_extra_relapses(FRAILTY))
    joint = frail * gad_chance * (above - below) * extra_relapses
    return np.asarray(joint / joint.sum())


def probability_at_most(arm: str, period: int, *, centre: Floats, spread: float) -> Floats:
    """Return P(Y_period(arm) <= count) [..., count] for a score N(centre [...], spread^2)."""
    bound = np.append(ndtri(disease.count_cdf(arm, period)[:-1]), np.inf)
    return np.asarray(ndtr((bound - centre[..., None]) / spread))


def counterfactual_moments(
    patient: Patient, h: float, *, arms: Sequence[str]
) -> CounterfactualMoments:
    """Return the moments of the outcomes at w096 under every one of `arms`.

    `h` is the predictability of the trial. The arms share severity. Given severity, arms with
    different response noise are independent.
    """
    severity = _severity_posterior(patient, h)
    given_severity = np.stack([_count_given_severity(patient, h, arm) for arm in arms])
    moments = []
    for outcome in (np.minimum(COUNTS, 1.0), COUNTS):
        # [arm, severity]: expectations of the outcome and of its square.
        first, second = given_severity @ outcome, given_severity @ outcome**2
        mean = first @ severity
        product = (first * severity) @ first.T
        np.fill_diagonal(product, second @ severity)
        for one, other in combinations(range(len(arms)), 2):
            if _share_response(arms[one], arms[other]):
                both = _product_given_severity(patient, h, (arms[one], arms[other]), outcome)
                product[one, other] = product[other, one] = both @ severity
        moments.append(Moments(mean, product - np.outer(mean, mean)))
    return CounterfactualMoments(*moments)


def _severity_posterior(patient: Patient, h: float) -> Floats:
    """Return P(severity of w096 | record of w000) at each of SEVERITY, [severity].

    Severity is h z + sqrt(1 - h^2) noise.
    """
    weight = frailty_posterior(patient) @ _severity_given_frailty(h)
    return np.asarray(weight / weight.sum())


@lru_cache
def _severity_given_frailty(h: float) -> Floats:
    """Return the density of severity given frailty, [frailty, severity]."""
    spread = max(float(np.sqrt(1 - h**2)), _SMOOTHING)
    return np.asarray(norm.pdf(SEVERITY, h * FRAILTY[:, None], spread))


def _count_given_severity(patient: Patient, h: float, arm: str) -> Floats:
    """Return P(count at w096 under `arm` | severity), [severity, count]."""
    weights = disease.score_weights(arm, h)
    centre = weights.severity * SEVERITY + weights.age * disease.standardised_age(patient.age)
    spread = float(np.hypot(weights.response, weights.severity * _SMOOTHING))
    at_most = probability_at_most(arm, OUTCOME, centre=centre, spread=spread)
    return np.diff(at_most, axis=-1, prepend=0.0)


def _share_response(arm: str, other: str) -> bool:
    """Return True for two arms whose responses depend on one noise, as those of interferons."""
    models = disease.ARM_MODELS
    return models[arm].channel == models[other].channel


def _product_given_severity(
    patient: Patient, h: float, arms: tuple[str, str], outcome: Floats
) -> Floats:
    """Return E[product of the outcomes under two arms with one response noise | severity]."""
    age = disease.standardised_age(patient.age)
    product = np.ones((len(SEVERITY), len(RESPONSE)))
    for arm in arms:
        weights = disease.score_weights(arm, h)
        score = weights.severity * SEVERITY[:, None] + weights.response * RESPONSE
        score = score + weights.age * age
        at = np.searchsorted(disease.count_cdf(arm, OUTCOME), ndtr(score))
        product *= outcome[at.clip(max=disease.MAX_COUNT)]
    response = norm.pdf(RESPONSE)
    return np.asarray(product @ (response / response.sum()))
