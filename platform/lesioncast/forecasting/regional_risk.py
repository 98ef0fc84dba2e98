"""Regional risk in closed form: the probability that a region will have a new lesion.

The share of samples with a lesion in the region has steps of one sample, and disagrees with the map
and with P(active), which are computed without samples. Here the risk follows from both.

A lesion touches a region r with probability t = min(1, ratio_r s_r): s_r is the region's share of
the map, and ratio_r, measured on training cases, is how many times the region's share of lesions
exceeds its share of lesion voxels (a lesion on its border has few voxels in it). With the number of
lesions of load class k taken as one plus a Poisson number of mean n_k - 1, which is the least that
an active patient has,

    P(region r) = sum over k of p(load k) (1 - (1 - t) exp(-(n_k - 1) t)).

A region that no lesion misses has the risk P(active), and none has a higher one.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s
from lesioncast.forecasting.ensemble import Ensemble, ExpectedOutcomes
from lesioncast.imaging.regions import REGIONS


def regional_risks(
    ensemble: Ensemble,
    parcellation: npt.NDArray[np.integer] | None,
    ratios: Mapping[str, float],
    *,
    opening: bool,
) -> dict[str, float]:
    """Return the risk of each region in closed form, from the map and the load classes.

    `ratios` are those of the bundle. Empty where the risk is known from samples alone: without a
    parcellation [s, h, w] or a map in closed form, and after the opening.
    """
    expected = ensemble.expected_outcomes(opening=opening)
    if ensemble.closed_form_map is None or parcellation is None or expected is None:
        return {}
    return risks_of_map(ensemble.closed_form_map, parcellation, ratios, expected)


def risks_of_map(
    probability: Float32s,
    parcellation: npt.NDArray[np.integer],
    ratios: Mapping[str, float],
    expected: ExpectedOutcomes,
) -> dict[str, float]:
    """Return the risk of each region that has a ratio, from a map [s, h, w] in closed form."""
    shares = region_shares(probability, parcellation)
    return {
        region: risk_of_region(ratio * shares[region], expected) for region, ratio in ratios.items()
    }


def region_shares(probability: Float32s, parcellation: npt.NDArray[np.integer]) -> dict[str, float]:
    """Return the share of a map [s, h, w] in each region; 0 of a map without probability."""
    total = float(probability.sum(dtype=np.float64))
    return {
        region: float(probability[np.isin(parcellation, ids)].sum(dtype=np.float64))
        / max(total, np.finfo(np.float64).tiny)
        for region, ids in REGIONS.items()
    }


def risk_of_region(touching: float, expected: ExpectedOutcomes) -> float:
    """Return the probability that a lesion touches a region that each touches with `touching`.

    `touching` above 1 counts as 1.
    """
    touch = min(touching, 1.0)
    edges = np.array([*expected.load_edges, 1.0])
    further = _further_lesions(expected)
    missed = (1 - touch) * np.exp(-further * touch)
    return float(np.diff(edges) @ (1 - missed))


def _further_lesions(expected: ExpectedOutcomes) -> npt.NDArray[np.float64]:
    """Return the mean number of lesions beyond the first in each class with lesions."""
    return np.maximum(np.array(expected.class_lesions[1:], np.float64) - 1, 0)
