"""The samples of one case under one arm, and what they say together."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logit

Counts = npt.NDArray[np.int64]

MIN_PROBABILITY = 1e-6  # a chance from which log odds are taken


class ExpectedOutcomes(NamedTuple):
    """What a model knows of one case under one arm before it draws, which has no Monte Carlo error:
    P(active), and the expectations of the number of lesions n and of log(1 + n)."""

    p_active: float
    lesions: float
    log_lesions: float


@dataclass(frozen=True, kw_only=True)
class SampledCounts:
    """The lesions of K samples of one case under one arm: `plain` and `opened` [k] are counts
    without and with the opening.

    `stated` is about lesions as drawn; None for models that only draw.
    """

    plain: Counts
    opened: Counts
    stated: ExpectedOutcomes | None = None

    def counts(self, *, opening: bool) -> Counts:
        """Lesions of each sample, [k]."""
        return self.opened if opening else self.plain

    def stated_of(self, *, opening: bool) -> ExpectedOutcomes | None:
        """`stated`, which says nothing of what the opening leaves."""
        return None if opening else self.stated

    def p_active(self, *, opening: bool) -> float:
        """P(active) as stated, else the share of samples with at least one lesion."""
        stated = self.stated_of(opening=opening)
        return active_fraction(self.counts(opening=opening)) if stated is None else stated.p_active

    def log_lesions(self, *, opening: bool) -> float:
        """The expectation of log(1 + n) as stated, else the mean over the samples."""
        stated = self.stated_of(opening=opening)
        if stated is not None:
            return stated.log_lesions
        return float(np.log1p(self.counts(opening=opening)).mean())

    def log_odds(self, *, opening: bool) -> float:
        """Of P(active); of a share of samples with half a sample added to either side, so that it
        is finite where all samples agree."""
        chance = self.p_active(opening=opening)
        if self.stated_of(opening=opening) is None:
            held = self.counts(opening=opening) > 0
            chance = (held.sum() + 0.5) / (len(held) + 1)
        return float(logit(min(max(chance, MIN_PROBABILITY), 1 - MIN_PROBABILITY)))


@dataclass(frozen=True, kw_only=True)
class Ensemble(SampledCounts):
    """K samples of one case under one arm; sample k has seed `seeds[k]`.

    `volume` [k] is in mm3, `probability` [s, h, w] is the share of samples with a lesion at each
    voxel.
    """

    case: int
    arm: int
    seeds: tuple[int, ...]
    volume: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float32]


def active_fraction(counts: Counts) -> float:
    """The share of samples with at least one lesion."""
    return float(np.mean(counts > 0))


def wilson_interval(share: float, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson score interval of a share of `trials`; it stays honest at 0 and at 1."""
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    half = float(z * spread / (1 + z * z / trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def monte_carlo_error(values: npt.NDArray[np.generic]) -> float:
    """Standard error of the mean of independent draws `values` [k]."""
    return float(np.std(values.astype(np.float64), ddof=1) / np.sqrt(len(values)))


def stratified_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error, from the draws alone, of the mean over the cases of `values` [n, k].

    Each case has k independent draws of its own; the cases are taken as given.
    """
    cases, draws = values.shape
    return float(np.sqrt(np.mean(np.var(values, axis=1, ddof=1)) / (draws * cases)))


def paired_difference(
    values: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]
) -> tuple[float, float]:
    """(mean of values - reference, its Monte Carlo standard error), both [k] on the same seeds.

    Common random numbers: the error is that of the differences, far below that of two
    independent ensembles where the arms move together.
    """
    difference = values.astype(np.float64) - reference.astype(np.float64)
    return float(difference.mean()), monte_carlo_error(difference)
