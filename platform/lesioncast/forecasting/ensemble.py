"""Ensembles: the samples of one case under one arm, and estimates from them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lesioncast.calibration.recalibration import finite_log_odds

Counts = npt.NDArray[np.int64]


class MemberOutcomes(NamedTuple):
    """What one member of a bundle expects of one case under one arm."""

    p_active: float
    lesions: float


class ExpectedOutcomes(NamedTuple):
    """Expectations that the prognostic prior states before sampling, so without Monte Carlo error.

    They are P(active) and the expectations of the number of lesions n and of log(1 + n), of one
    case under one arm. `log_sd` is the standard deviation of log(1 + n) between the lesion load
    classes; their own spread is not part of it. `load_edges` are the quantiles of a seed at which
    the lesion load class of its sample changes. `class_lesions` are the mean numbers of lesions of
    the classes, the class without lesions first. `clipped` names the inputs of the case that lie
    beyond the training range, and `pattern` says which images it has, in words. `members` holds
    what each member of the bundle expects, whose means these are; empty where there is one.
    """

    p_active: float
    lesions: float
    log_lesions: float
    log_sd: float = 0.0
    load_edges: tuple[float, ...] = ()
    clipped: tuple[str, ...] = ()
    class_lesions: tuple[float, ...] = ()
    pattern: str = ""
    members: tuple[MemberOutcomes, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SampledCounts:
    """Lesion counts of K samples of one case under one arm."""

    #: Number of lesions of each sample [k], without the opening.
    plain: Counts
    #: Number of lesions of each sample [k], after the opening.
    opened: Counts
    #: Exact expectations, without the opening; None for models that only sample.
    expected: ExpectedOutcomes | None = None

    def counts(self, *, opening: bool) -> Counts:
        """Return the number of lesions of each sample [k]."""
        return self.opened if opening else self.plain

    def expected_outcomes(self, *, opening: bool) -> ExpectedOutcomes | None:
        """Return the exact expectations, or None after the opening, for which there are none."""
        return None if opening else self.expected

    def p_active(self, *, opening: bool) -> float:
        """Return P(active): exact if it is known, else the share of samples with a lesion."""
        expected = self.expected_outcomes(opening=opening)
        return (
            active_fraction(self.counts(opening=opening)) if expected is None else expected.p_active
        )

    def log_lesions(self, *, opening: bool) -> float:
        """Return the expectation of log(1 + n): exact if it is known, else the sample mean."""
        expected = self.expected_outcomes(opening=opening)
        if expected is not None:
            return expected.log_lesions
        return float(np.log1p(self.counts(opening=opening)).mean())

    def log_sd(self, *, opening: bool) -> float:
        """Return the standard deviation of log(1 + n): as expected, else that of the samples."""
        expected = self.expected_outcomes(opening=opening)
        if expected is not None:
            return expected.log_sd
        return float(np.log1p(self.counts(opening=opening)).std())

    def log_odds(self, *, opening: bool) -> float:
        """Return the log odds of P(active).

        Half a sample is added to either side of a share of samples, so that its log odds are finite
        where all samples agree.
        """
        p_active = self.p_active(opening=opening)
        if self.expected_outcomes(opening=opening) is None:
            active = self.counts(opening=opening) > 0
            p_active = (active.sum() + 0.5) / (len(active) + 1)
        return float(finite_log_odds(np.array(p_active)))


@dataclass(frozen=True, kw_only=True)
class DrawnCounts(SampledCounts):
    """Lesion counts of K samples with their seeds, from which their Monte Carlo error follows."""

    #: Seed of each sample [k].
    seeds: tuple[int, ...]

    @property
    def load_edges(self) -> tuple[float, ...]:
        """Return the quantiles at which the load class changes; none for models without loads."""
        return () if self.expected is None else self.expected.load_edges

    @property
    def clipped(self) -> tuple[str, ...]:
        """Return the names of the case's inputs that lie beyond the training range."""
        return () if self.expected is None else self.expected.clipped


@dataclass(frozen=True, kw_only=True)
class Ensemble(DrawnCounts):
    """K samples of one case under one arm."""

    #: Index of the case in its store.
    case: int
    #: Index of the arm.
    arm: int
    #: Lesion volume of each sample [k], in mm3.
    volume: npt.NDArray[np.float64]
    #: Share of samples with a lesion at each voxel [s, h, w].
    sample_share: npt.NDArray[np.float32]
    #: Probability of a lesion at each voxel [s, h, w] without sampling; None for models without a
    #: base map, whose map is not better than the share.
    closed_form_map: npt.NDArray[np.float32] | None = None

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """Return the probability of a lesion at each voxel [s, h, w], the best that is known."""
        return self.sample_share if self.closed_form_map is None else self.closed_form_map

    def expected_voxels(self, *, opening: bool) -> float | None:
        """Return the expected number of lesion voxels, None where it is known from samples alone.

        The map expects as many voxels as the lesion load classes on average. After the opening
        nothing is known without samples.
        """
        if opening or self.closed_form_map is None:
            return None
        return float(self.closed_form_map.sum(dtype=np.float64))


def active_fraction(counts: Counts) -> float:
    """Return the share of samples with at least one lesion."""
    return float(np.mean(counts > 0))


def wilson_interval(share: float, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share of `trials`.

    Its coverage also holds for shares of 0 and 1, where the normal interval has no width.
    """
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    half = float(z * spread / (1 + z * z / trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def monte_carlo_error(values: npt.NDArray[np.generic]) -> float:
    """Return the standard error of the mean of independent draws `values` [k]."""
    return float(np.std(values.astype(np.float64), ddof=1) / np.sqrt(len(values)))


def stratified_error(values: npt.NDArray[np.float64]) -> float:
    """Return the Monte Carlo standard error of the mean of `values` [n, k].

    Each of the n cases has k independent draws of its own. The cases are fixed: their own variation
    is not part of the error.
    """
    cases, draws = values.shape
    return float(np.sqrt(np.mean(np.var(values, axis=1, ddof=1)) / (draws * cases)))


def paired_difference(
    values: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]
) -> tuple[float, float]:
    """Return the mean of `values` - `reference` and its Monte Carlo standard error.

    Both [k] are drawn on the same seeds (common random numbers). The error is that of the paired
    differences, which is far below that of two independent ensembles.
    """
    difference = values.astype(np.float64) - reference.astype(np.float64)
    return float(difference.mean()), monte_carlo_error(difference)
