"""Simulate patients by a structural causal model that reproduces the paper's Table 1.

Exogenous noise is drawn once for a subject and shared by all arms, so the count under each arm is
an exact counterfactual. Y_p(arm) is the quantile of Table 1's hurdle model at Phi(S_p(arm)). The
score S_p(arm) is standard normal for every arm, so activity and mean count of Table 1 hold in
expectation.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.arrays import Floats, Ints
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings

PERIODS = ("w048", "w096")
# Largest number of new lesions in a period; higher counts are censored to it.
MAX_COUNT = 48
# Shape of the negative binomial distribution of counts.
_DISPERSION = 0.9
# Negative: younger patients are more active.
AGE_FRAILTY_CORRELATION = -0.35
# Mean and standard deviation of the age in years.
_MEAN_AGE, _SD_AGE = 37.5, 9.0
# Enhancing lesions at w000: shape of their gamma-distributed rate, and the largest number.
GAD_SHAPE, MAX_GAD = 1.5, 15
# T2 lesions at w000: standard deviation of the log count, and the smallest and largest number.
T2_LOG_SD, MIN_T2, MAX_T2 = 0.35, 3, 70


@dataclass(frozen=True)
class ArmModel:
    """Table 1 for one arm, and how individual responses to the arm vary."""

    #: Mean number of new lesions at w048 and at w096.
    mean_count: tuple[float, float]
    #: Fraction of active patients at w048 and at w096.
    activity: tuple[float, float]
    #: Weight of the response noise in the score.
    response: float
    #: Weight of age in the score: older patients benefit less from therapy.
    age: float
    #: Index of the response noise; the two interferons share one.
    channel: int


ARM_MODELS = {
    "placebo": ArmModel((4.60, 3.33), (0.637, 0.581), 0.00, 0.00, 0),
    "laquinimod": ArmModel((5.51, 4.49), (0.647, 0.571), 0.15, 0.00, 1),
    "avonex": ArmModel((4.37, 4.37), (0.547, 0.519), 0.30, 0.10, 2),
    "interferon": ArmModel((0.63, 1.59), (0.249, 0.337), 0.40, 0.10, 2),
    "fumarate": ArmModel((0.60, 1.03), (0.196, 0.261), 0.40, 0.15, 3),
    "ocrelizumab": ArmModel((0.07, 0.07), (0.032, 0.015), 0.40, 0.15, 4),
}

# (trial, arm, patients of 2131): the shares of section 3. How the 327 placebo patients divide
# between BRAVO and DEFINE is not published; here each trial's placebo arm matches its others.
ENROLMENT = (
    ("BRAVO", "placebo", 237),
    ("BRAVO", "laquinimod", 237),
    ("BRAVO", "avonex", 271),
    ("OPERA", "interferon", 529),
    ("OPERA", "ocrelizumab", 574),
    ("DEFINE", "placebo", 90),
    ("DEFINE", "fumarate", 193),
)
TRIALS = ("BRAVO", "OPERA", "DEFINE")


@dataclass(frozen=True)
class Patient:
    """One subject before any image: latents, assignment and potential outcomes."""

    index: int
    arm: str
    trial: str
    #: Age at w000 in years.
    age: float
    sex: str
    #: Years since first symptoms.
    duration: float
    #: z, the latent tendency to form lesions.
    frailty: float
    #: Number of enhancing lesions at w000.
    gad_count: int
    #: Number of T2 lesions at w000.
    t2_count: int
    #: Probability that a lesion is cortical.
    cortical: float
    #: Distance in mm by which the walls of the ventricles move outwards.
    atrophy: float
    #: Number of relapses in the two years before w000.
    relapses: int
    edss: float
    #: Number of new lesions [period, arm], arms as in `PAPER_ARM_NAMES`.
    counts: Ints

    def covariates(self) -> dict[str, Any]:
        """Return the covariates that a trial would record."""
        return {
            "age": round(self.age, 1),
            "sex": self.sex,
            "disease_duration": round(self.duration, 1),
            "edss": self.edss,
            "relapses": self.relapses,
        }


def _censored_pmf(mean: float) -> Floats:
    """Return P(Y = 1 .. MAX_COUNT | active), Y = min(1 + negative binomial(k, mean), MAX_COUNT)."""
    distribution = stats.nbinom(_DISPERSION, _DISPERSION / (_DISPERSION + mean))
    pmf: Floats = distribution.pmf(np.arange(MAX_COUNT))
    pmf[-1] = distribution.sf(MAX_COUNT - 2)
    return pmf


@lru_cache
def count_cdf(arm: str, period: int) -> Floats:
    """Return P(Y <= n) for n = 0 .. MAX_COUNT, with Table 1's activity and mean count of `arm`."""
    model = ARM_MODELS[arm]
    activity, mean_count = model.activity[period], model.mean_count[period]
    counts = np.arange(1, MAX_COUNT + 1)

    # Censoring lowers the mean, so the parameter that gives Table 1's mean has to be solved for.
    def excess(mean: float) -> float:
        return float(activity * (_censored_pmf(mean) @ counts) - mean_count)

    solved = optimize.brentq(excess, 1e-6, 1e3)
    pmf = np.concatenate([[1 - activity], activity * _censored_pmf(solved)])
    return np.cumsum(pmf)


class ScoreWeights(NamedTuple):
    """Weights of the standard normal terms of a score; the weighted sum is standard normal too."""

    #: Weight of the severity h z + sqrt(1 - h^2) noise of the period.
    severity: float
    #: Weight of the response noise of the arm.
    response: float
    #: Weight of the standardised age.
    age: float


@lru_cache
def score_weights(arm: str, h: float) -> ScoreWeights:
    """Return the weights for `arm` if the severity has predictability `h`."""
    model = ARM_MODELS[arm]
    own = np.sqrt(1 - model.response**2)
    scale = np.sqrt(1 + model.age**2 + 2 * own * model.age * h * AGE_FRAILTY_CORRELATION)
    return ScoreWeights(own / scale, model.response / scale, model.age / scale)


def _scores(severity: Floats, age: float, responses: Floats, h: float) -> Floats:
    """Return S_p(arm), standard normal for every arm, [period, arm], from severity [period]."""
    scores = np.empty((len(PERIODS), len(PAPER_ARM_NAMES)))
    for column, arm in enumerate(PAPER_ARM_NAMES):
        weights = score_weights(arm, h)
        response = responses[ARM_MODELS[arm].channel]
        scores[:, column] = (
            weights.severity * severity + weights.response * response + weights.age * age
        )
    return scores


def _counts(scores: Floats) -> Ints:
    """Return Y_p(arm), the quantile at Phi(score), [period, arm]."""
    uniform = special.ndtr(scores)
    return np.array(
        [
            [
                np.searchsorted(count_cdf(arm, p), uniform[p, a])
                for a, arm in enumerate(PAPER_ARM_NAMES)
            ]
            for p in range(len(PERIODS))
        ]
    ).clip(0, MAX_COUNT)


def _assign(rng: np.random.Generator) -> tuple[str, str]:
    """Draw (trial, arm) with the shares of `ENROLMENT`."""
    shares = np.array([patients for *_, patients in ENROLMENT], float)
    trial, arm, _ = ENROLMENT[rng.choice(len(ENROLMENT), p=shares / shares.sum())]
    return trial, arm


def standardised_age(years: float) -> float:
    """Return the age minus the mean, in standard deviations."""
    return (years - _MEAN_AGE) / _SD_AGE


def gad_mean(z: Floats | float) -> Floats:
    """Return the expected number of enhancing lesions at w000 for frailty z, before clipping."""
    return np.asarray(np.exp(-0.2 + 0.9 * z))


def t2_median(z: Floats | float, age: float, duration: float) -> Floats:
    """Return the median number of T2 lesions at w000 for frailty z.

    `age` is standardised and `duration` in years.
    """
    return np.asarray(14 * np.exp(0.4 * z + 0.15 * age + 0.25 * np.log1p(duration / 5)))


def expected_extra_relapses(z: Floats | float) -> Floats:
    """Return the expected number of relapses after the first for frailty z."""
    return np.asarray(0.5 * np.exp(0.35 * z))


class _Latents(NamedTuple):
    """Standard normal variables from which a patient follows; age is standardised."""

    frailty: float
    age: float
    disability: float
    #: What no past tells of the severity of each period, [period].
    luck: Floats
    #: Response to each kind of therapy, [channel].
    responses: Floats


def _draw_latents(rng: np.random.Generator) -> _Latents:
    """Draw the latents of a patient; age correlates with frailty."""
    z, age, disability = rng.standard_normal(3)
    age = AGE_FRAILTY_CORRELATION * z + np.sqrt(1 - AGE_FRAILTY_CORRELATION**2) * age
    luck = rng.standard_normal(len(PERIODS))
    return _Latents(z, age, disability, luck, rng.standard_normal(5))


def _severity(latents: _Latents, h: float) -> Floats:
    """Return the severity of each period with predictability `h`, [period]."""
    return np.asarray(h * latents.frailty + np.sqrt(1 - h**2) * latents.luck)


def redraw_count(
    settings: SimulationSettings, index: int, arm: str, rng: np.random.Generator
) -> int:
    """Draw the new lesions of patient `index` in the last period once more, under `arm`.

    Only the luck of that period is drawn anew. Frailty, age and response to therapy stay, so the
    number follows its distribution given all that precedes the period.
    """
    h = settings.predictability
    latents = _draw_latents(subject_rng(settings, index, RngStream.PATIENT))
    luck = np.append(latents.luck[:-1], rng.standard_normal())
    latents = latents._replace(luck=luck)
    counts = _counts(_scores(_severity(latents, h), latents.age, latents.responses, h))
    return int(counts[-1, PAPER_ARM_NAMES.index(arm)])


def draw_patient(settings: SimulationSettings, index: int) -> Patient:
    """Draw patient number `index` of the trial; the image grid does not influence it."""
    trial, arm = _assign(subject_rng(settings, index, RngStream.ASSIGNMENT))
    rng = subject_rng(settings, index, RngStream.PATIENT)
    h = settings.predictability
    latents = _draw_latents(rng)
    z, age, disability = latents.frailty, latents.age, latents.disability
    scores = _scores(_severity(latents, h), age, latents.responses, h)
    years = float(np.clip(_MEAN_AGE + _SD_AGE * age, 18, 60))
    duration = float(np.clip(rng.gamma(1.6, 4.0) * years / _MEAN_AGE, 0.2, years - 12))
    sex = "F" if rng.random() < 0.68 else "M"
    gad = rng.poisson(rng.gamma(GAD_SHAPE, gad_mean(z) / GAD_SHAPE))
    t2 = t2_median(z, age, duration) * np.exp(T2_LOG_SD * rng.standard_normal())
    return Patient(
        index=index,
        arm=arm,
        trial=trial,
        age=years,
        sex=sex,
        duration=duration,
        frailty=float(z),
        gad_count=int(np.clip(gad, 0, MAX_GAD)),
        t2_count=int(np.clip(t2, MIN_T2, MAX_T2)),
        cortical=float(rng.beta(0.8, 6.4)),
        atrophy=float(np.clip(0.8 + 0.5 * age + 0.08 * duration + 0.5 * disability, -0.5, 4.0)),
        relapses=int(1 + rng.poisson(expected_extra_relapses(z))),
        edss=float(np.clip(np.round(2 * (2.3 + 0.08 * duration + 0.9 * disability)) / 2, 0, 5.5)),
        counts=_counts(scores),
    )
