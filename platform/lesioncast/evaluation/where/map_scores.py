"""Scores of one case's map against its observed new lesions.

Information gain is the log likelihood that a map gives to what happened, minus that of a reference
map, per event. Earthquake forecasts are scored so (Vere-Jones 1998; Rhoades et al. 2011). Here the
events are lesion voxels or lesions, and the reference is the atlas.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Floats

# Edges of the bins of a map's ranks, as shares of the brain from the least to the most likely.
RANK_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class MapScore:
    """Scores of the map of one case with new lesions."""

    #: Sum over new-lesion voxels of log(density / atlas density).
    nats_case: float
    #: Mean over new lesions of the mean over the lesion's voxels of the same log ratio.
    nats_lesion: float
    #: Share of pairs, a new-lesion voxel and another voxel of the brain, that are ranked rightly.
    auc: float
    #: New-lesion voxels in each bin of the map's ranks, [bin]; ties are shared between bins.
    observed: Floats
    #: Density of the map in each bin, [bin].
    forecast: Floats


def score_map(density: Floats, atlas: Floats, lesions: npt.NDArray[np.int32]) -> MapScore:
    """Score a density [n] over the voxels of one brain.

    `atlas` [n] is the reference density. `lesions` [n] numbers the new lesion of each voxel from 1;
    0 is no new lesion, and at least one voxel has one.
    """
    hit = lesions > 0
    gain = np.log(density[hit] / atlas[hit])
    number = lesions[hit]
    size = np.bincount(number)
    by_lesion = np.bincount(number, weights=gain)[size > 0] / size[size > 0]
    ordered = np.sort(density)
    below = np.searchsorted(ordered, density[hit], side="left")
    up_to = np.searchsorted(ordered, density[hit], side="right")
    return MapScore(
        nats_case=float(gain.sum()),
        nats_lesion=float(by_lesion.mean()),
        auc=_auc(below, up_to, len(density)),
        observed=_in_bins(below / len(density), up_to / len(density)),
        forecast=_density_in_bins(ordered),
    )


def _auc(below: npt.NDArray[np.intp], up_to: npt.NDArray[np.intp], voxels: int) -> float:
    """Return the in-brain AUC from the ranks of the lesion voxels, [m] each; NaN without others.

    `below` counts voxels of lower density and `up_to` those of at most the same.
    """
    hits = len(below)
    others = hits * (voxels - hits)
    # The mean rank of a tie, summed over lesion voxels, less the ranks among lesion voxels.
    ranks = ((below + up_to + 1) / 2).sum()
    return float((ranks - hits * (hits + 1) / 2) / others) if others else np.nan


def _in_bins(low: Floats, high: Floats) -> Floats:
    """Return how many of the ranks lie in each bin, [bin].

    A voxel may have any rank from `low` to `high`, [m] each: a tie gives each bin its share.
    """
    edges = np.array(RANK_EDGES)
    start, stop = np.maximum(low[:, None], edges[:-1]), np.minimum(high[:, None], edges[1:])
    share = np.clip(stop - start, 0, None) / (high - low)[:, None]
    return np.asarray(share.sum(axis=0))


def _density_in_bins(ordered: Floats) -> Floats:
    """Return the density in each bin, [bin], from the density of all voxels in rising order."""
    cumulative = np.concatenate([[0.0], np.cumsum(ordered)])
    at_edges = np.interp(
        np.array(RANK_EDGES) * len(ordered), np.arange(len(cumulative)), cumulative
    )
    return np.asarray(np.diff(at_edges) / cumulative[-1])
