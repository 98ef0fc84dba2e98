"""Distance to older lesions: how much likelier a new lesion is in each ring than by the atlas.

The density of a case is atlas(v) r(ring of v), normalised. The rates r maximise the conditional
likelihood of the training cases' lesion voxels given how many each case has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Bools, Floats, Mask, Spacing
from lesioncast.evaluation.where.atlas import Voxels, atlas_of, sum_of_masks
from lesioncast.evaluation.where.density import brain_of, density_in
from lesioncast.imaging.channels import BASELINE, CHANNELS, CURRENT, MASKS, SESSIONS
from lesioncast.imaging.features.image_features import CaseImages

# Outer edges in mm. The first ring is the older lesions themselves, the last has no outer edge.
RING_EDGES_MM = (0.0, 3.0, 4.0, 5.0, 6.5, 9.0, 12.0, 16.0, 22.0)
NUMBER_OF_RINGS = len(RING_EDGES_MM) + 1
OLDER = ((BASELINE, "t2"), (CURRENT, "t2"), (CURRENT, "net2"))
# Lesion voxels that are added to what is observed and expected of a ring, so that a ring without
# any has a rate.
_PRIOR_VOXELS = 1.0
_ITERATIONS = 200


@dataclass(frozen=True)
class RingCounts:
    """Atlas density and observed lesion voxels of one training case by ring, [ring] each."""

    atlas: Floats
    observed: Floats


def older_lesions(images: CaseImages) -> Mask:
    """Return the voxels of lesions that a case has before the outcome, [s, h, w].

    Channels that the case lacks count as empty.
    """
    places = [(SESSIONS.index(session), name) for session, name in OLDER]
    present: Bools = np.array([images.present[row, CHANNELS.index(name)] for row, name in places])
    masks = np.array([images.masks[row, MASKS.index(name)] for row, name in places], bool)
    return np.asarray(masks[present].any(axis=0))


def ring_of_voxels(older: Mask, spacing: Spacing) -> npt.NDArray[np.intp]:
    """Return the ring of each voxel, [s, h, w]; without older lesions all are in the last ring."""
    if not older.any():
        return np.full(older.shape, NUMBER_OF_RINGS - 1)
    distance = ndimage.distance_transform_edt(~older, sampling=spacing)
    return np.asarray(np.searchsorted(RING_EDGES_MM, distance - 1e-6))


def ring_counts(images: CaseImages, voxels: Voxels, atlas: Floats, spacing: Spacing) -> RingCounts:
    """Return atlas density and observed lesion voxels of a training case by ring.

    `voxels` are the case's new lesions. `atlas` [s, h, w] holds them too, so they are taken out:
    the case is compared with the atlas of the other cases.
    """
    own = sum_of_masks([voxels], images.parcellation.shape)
    brain = brain_of(images)
    density = density_in(brain, np.maximum(atlas - atlas_of(own, spacing), 0.0))
    ring = ring_of_voxels(older_lesions(images), spacing)[brain]

    def by_ring(weights: Floats) -> Floats:
        return np.bincount(ring, weights=weights, minlength=NUMBER_OF_RINGS).astype(np.float64)

    return RingCounts(atlas=by_ring(density), observed=by_ring(own[brain]))


def fit_ring_rates(cases: Sequence[RingCounts]) -> Floats:
    """Return the rate of each ring relative to the atlas, [ring]; their atlas-weighted mean is 1.

    At the maximum of the conditional likelihood, the expected lesion voxels of each ring equal the
    observed ones. Iterative scaling reaches it (Darroch and Ratcliff 1972).
    """
    rates = np.ones(NUMBER_OF_RINGS)
    if not cases:
        return rates
    atlas = np.array([case.atlas for case in cases])  # [n, ring]
    observed = np.array([case.observed for case in cases])
    voxels = observed.sum(axis=1, keepdims=True)
    for _ in range(_ITERATIONS):
        density = atlas * rates
        expected = (voxels * density / density.sum(axis=1, keepdims=True)).sum(axis=0)
        rates *= (observed.sum(axis=0) + _PRIOR_VOXELS) / (expected + _PRIOR_VOXELS)
    return np.asarray(rates / (atlas @ rates).mean())
