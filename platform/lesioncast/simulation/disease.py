"""The patient as a structural causal model: latents, responses and counts, held to Table 1.

Exogenous noise is drawn once for a subject and shared by every arm, so the count under each arm is
exact: Y_p(arm) is the quantile of Table 1's hurdle model at Phi(S_p(arm)), and S_p(arm) is a
standard normal variable whatever the arm. Both columns of Table 1 therefore hold in expectation.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings

Reals = npt.NDArray[np.float64]

PERIODS = ("w048", "w096")
MAX_COUNT = 48
_DISPERSION = 0.9
AGE_FRAILTY_CORRELATION = -0.35  # correlation of age and frailty: younger patients are more active
_MEAN_AGE, _SD_AGE = 37.5, 9.0  # years
GAD_SHAPE, MOST_GAD = 1.5, 15
T2_SPREAD, LEAST_T2, MOST_T2 = 0.35, 3, 70


@dataclass(frozen=True)
class ArmModel:
    """Table 1 for one arm (w048, w096), and how the arm reshuffles who stays active."""

    mean_count: tuple[float, float]
    activity: tuple[float, float]
    response: float  # weight of the arm's own response noise in the score
    age: float  # weight of age in the score: older patients profit less from therapy
    channel: int  # which response noise; the two interferons share theirs


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
    age: float  # years
    sex: str
    duration: float  # years since first symptoms
    frailty: float  # z, the latent tendency to form lesions
    gad_count: int
    t2_count: int
    cortical: float  # share of the lesions that touch the cortex
    atrophy: float  # mm by which the ventricles' walls move outwards
    relapses: int  # in the two years before w000
    edss: float
    counts: npt.NDArray[np.int64]  # [period, arm], arms as in PAPER_ARM_NAMES

    def covariates(self) -> dict[str, Any]:
        """What a trial would record about the patient."""
        return {
            "age": round(self.age, 1),
            "sex": self.sex,
            "disease_duration": round(self.duration, 1),
            "edss": self.edss,
            "relapses": self.relapses,
        }


def _censored_pmf(mean: float) -> npt.NDArray[np.float64]:
    """P(Y = 1 .. MAX_COUNT | active), Y = min(1 + negative binomial(k, mean), MAX_COUNT)."""
    law = stats.nbinom(_DISPERSION, _DISPERSION / (_DISPERSION + mean))
    pmf: npt.NDArray[np.float64] = law.pmf(np.arange(MAX_COUNT))
    pmf[-1] = law.sf(MAX_COUNT - 2)
    return pmf


@lru_cache
def count_cdf(arm: str, period: int) -> npt.NDArray[np.float64]:
    """P(Y <= n) for n = 0 .. MAX_COUNT under `arm`, with Table 1's activity and mean count."""
    model = ARM_MODELS[arm]
    activity, mean_count = model.activity[period], model.mean_count[period]
    counts = np.arange(1, MAX_COUNT + 1)

    def excess(mean: float) -> float:
        return float(activity * (_censored_pmf(mean) @ counts) - mean_count)

    solved = optimize.brentq(excess, 1e-6, 1e3)
    pmf = np.concatenate([[1 - activity], activity * _censored_pmf(solved)])
    return np.cumsum(pmf)


class ScoreWeights(NamedTuple):
    """What the score of a period under an arm is made of; each weighs a standard normal variable,
    and so is their sum."""

    severity: float  # h z + sqrt(1 - h^2) noise of the period
    response: float  # the noise of the arm's channel
    age: float


@lru_cache
def score_weights(arm: str, h: float) -> ScoreWeights:
    """Of `arm` where the severity has predictability h."""
    model = ARM_MODELS[arm]
    own = np.sqrt(1 - model.response**2)
    scale = np.sqrt(1 + model.age**2 + 2 * own * model.age * h * AGE_FRAILTY_CORRELATION)
    return ScoreWeights(own / scale, model.response / scale, model.age / scale)


def _scores(
    severity: npt.NDArray[np.float64], age: float, responses: npt.NDArray[np.float64], h: float
) -> npt.NDArray[np.float64]:
    """S_p(arm), standard normal for every arm: [period, arm] from severity [period]."""
    scores = np.empty((len(PERIODS), len(PAPER_ARM_NAMES)))
    for column, arm in enumerate(PAPER_ARM_NAMES):
        weights = score_weights(arm, h)
        response = responses[ARM_MODELS[arm].channel]
        scores[:, column] = (
            weights.severity * severity + weights.response * response + weights.age * age
        )
    return scores


def _counts(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Y_p(arm) [period, arm]: the inverse distribution function at Phi(score)."""
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
    shares = np.array([patients for *_, patients in ENROLMENT], float)
    trial, arm, _ = ENROLMENT[rng.choice(len(ENROLMENT), p=shares / shares.sum())]
    return trial, arm


def standardised_age(years: float) -> float:
    """Age as the scores weigh it."""
    return (years - _MEAN_AGE) / _SD_AGE


def gad_mean(z: Reals) -> Reals:
    """Expected enhancing lesions at w000, before the cap, of frailty z."""
    return np.asarray(np.exp(-0.2 + 0.9 * z))


def t2_median(z: Reals, age: float, duration: float) -> Reals:
    """Median T2 lesions at w000 of frailty z, standardised age and years of disease."""
    return np.asarray(14 * np.exp(0.4 * z + 0.15 * age + 0.25 * np.log1p(duration / 5)))


def expected_extra_relapses(z: Reals) -> Reals:
    """Expected relapses, beside the first, of frailty z."""
    return np.asarray(0.5 * np.exp(0.35 * z))


def draw_patient(settings: SimulationSettings, index: int) -> Patient:
    """Patient number `index` of the trial: the same one whatever the image grid."""
    trial, arm = _assign(subject_rng(settings, index, RngStream.ASSIGNMENT))
    rng = subject_rng(settings, index, RngStream.PATIENT)
    h = settings.predictability
    z, age, disability = rng.standard_normal(3)
    age = (
        AGE_FRAILTY_CORRELATION * z + np.sqrt(1 - AGE_FRAILTY_CORRELATION**2) * age
    )  # standardised
    severity = h * z + np.sqrt(1 - h**2) * rng.standard_normal(len(PERIODS))
    scores = _scores(severity, age, rng.standard_normal(5), h)
    years = float(np.clip(_MEAN_AGE + _SD_AGE * age, 18, 60))
    duration = float(np.clip(rng.gamma(1.6, 4.0) * years / _MEAN_AGE, 0.2, years - 12))
    sex = "F" if rng.random() < 0.68 else "M"
    gad = rng.poisson(rng.gamma(GAD_SHAPE, gad_mean(z) / GAD_SHAPE))
    t2 = t2_median(z, age, duration) * np.exp(T2_SPREAD * rng.standard_normal())
    return Patient(
        index=index,
        arm=arm,
        trial=trial,
        age=years,
        sex=sex,
        duration=duration,
        frailty=float(z),
        gad_count=int(np.clip(gad, 0, MOST_GAD)),
        t2_count=int(np.clip(t2, LEAST_T2, MOST_T2)),
        cortical=float(rng.beta(0.8, 6.4)),
        atrophy=float(np.clip(0.8 + 0.5 * age + 0.08 * duration + 0.5 * disability, -0.5, 4.0)),
        relapses=int(1 + rng.poisson(expected_extra_relapses(z))),
        edss=float(np.clip(np.round(2 * (2.3 + 0.08 * duration + 0.9 * disability)) / 2, 0, 5.5)),
        counts=_counts(scores),
    )
