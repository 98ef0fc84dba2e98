"""Choose lesion sites in white matter: where lesions prefer to arise and which voxels are free.

The preference (`SiteWeights`) is fixed for a subject. The free tissue (`FreeTissue`) shrinks as
lesions are placed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Float32s, Floats, Mask
from lesioncast.imaging.regions import CORTEX, WHITE_MATTER
from lesioncast.simulation.anatomy import Anatomy
from lesioncast.simulation.lesions.measured import measured_weight
from lesioncast.simulation.settings import LocationLaw
from storage.layout import CONNECTIVITY_26

Axes = tuple[Floats, ...]
"""Voxel positions along s, h and w, in mm about the centre of the volume."""
Voxel = tuple[int, int, int]
Window = tuple[slice, slice, slice]

# New lesions lie in the paper's slab of 15 slices of 3 mm (section 3, Dataset).
SLAB_MM = 45.0
# Number of candidate voxels of one kind of site before the next kind is tried.
_MAX_TRIES = 40


@dataclass(frozen=True)
class NearbyLaw:
    """How lesions arise beside older ones."""

    #: Share of the lesions that do.
    share: float
    #: Standard deviation of each coordinate of the distance to the older lesion, in mm.
    mm: float


NEARBY: dict[LocationLaw, NearbyLaw] = {
    "exponential": NearbyLaw(0.45, 6.0),
    "measured": NearbyLaw(0.30, 7.0),
}


@dataclass(frozen=True)
class SiteWeights:
    """Cumulative weights with which lesions start at each white matter voxel of a subject."""

    #: White matter [s, h, w].
    white: Mask
    #: Cerebral cortex [s, h, w].
    cortex: Mask
    #: Flat indices of the voxels of `white`, [n].
    voxels: npt.NDArray[np.intp]
    #: Cumulative weight of deep lesions, by distance to the ventricles and the cortex, [n].
    deep: Floats
    #: Cumulative weight of juxtacortical lesions: at the cortex and away from the ventricles, [n].
    juxtacortical: Floats


def lesion_site_weights(
    anatomy: Anatomy,
    axes: Axes,
    *,
    slab_only: bool,
    law: LocationLaw = "exponential",
    propensity: Float32s | None = None,
) -> SiteWeights:
    """Compute the weights of lesion sites.

    Outside the central slab the weight is 0 if `slab_only` (new lesions), else it decreases with
    the distance (baseline lesions). `propensity` [s, h, w] is the subject's own preference, added
    to the logarithm of each weight.
    """
    thickness = spacing_of(axes)[0]
    beyond = np.clip(np.abs(axes[0]) + thickness / 2 - SLAB_MM / 2, 0, None)  # mm, [s]
    share = (beyond < 1e-6).astype(float) if slab_only else np.exp(-beyond / 8)
    within = (share > 0)[:, None, None]
    white = within & ((anatomy.labels == WHITE_MATTER[0]) | (anatomy.labels == WHITE_MATTER[1]))
    cortex = within & ((anatomy.labels == CORTEX[0]) | (anatomy.labels == CORTEX[1]))
    voxels = np.flatnonzero(white)
    near = anatomy.ventricle_distance.ravel()[voxels]
    depth = anatomy.cortex_distance.ravel()[voxels]
    shares = share[voxels // (white.shape[1] * white.shape[2])]
    if propensity is not None:
        shares = shares * np.exp(propensity.ravel()[voxels])
    rim = max(2.0, spacing_of(axes)[1])
    return SiteWeights(
        white=white,
        cortex=cortex,
        voxels=voxels,
        deep=np.cumsum(shares * _deep_weight(law, near, depth)),
        juxtacortical=np.cumsum(shares * (depth <= rim) * (near > 6)),
    )


def _deep_weight(law: LocationLaw, near: Float32s, depth: Float32s) -> Floats:
    """Return the weight of sites `near` mm from the ventricles and `depth` mm from the cortex."""
    if law == "measured":
        return measured_weight(near, depth)
    return np.asarray((np.exp(-near / 5) + 0.05) * (depth > 2.5))


def spacing_of(axes: Axes) -> tuple[float, ...]:
    """Return the voxel size (s, h, w) in mm; 1 along an axis with a single voxel."""
    return tuple(float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes)


class FreeTissue:
    """White matter and cortex that no lesion occupies yet."""

    def __init__(self, sites: SiteWeights, spacing: tuple[float, ...]) -> None:
        self.spacing = spacing
        self.white = sites.white.copy()
        self.cortex = sites.cortex.copy()
        self._sites = sites

    def occupy(self, window: Window, mask: Mask) -> None:
        """Mark a lesion's voxels as occupied."""
        self.white[window] &= ~mask
        self.cortex[window] &= ~mask

    def occupy_with_margin(self, window: Window, mask: Mask) -> None:
        """Mark a lesion and every voxel that touches it as occupied.

        The window must have a margin of one voxel around the lesion.
        """
        self.occupy(window, ndimage.binary_dilation(mask, CONNECTIVITY_26))

    def deep_site(self, rng: np.random.Generator) -> Voxel | None:
        """Draw a free voxel of periventricular or deep white matter."""
        return self._weighted(rng, self._sites.deep)

    def juxtacortical_site(self, rng: np.random.Generator) -> Voxel | None:
        """Draw a free voxel of white matter at the cortex."""
        return self._weighted(rng, self._sites.juxtacortical)

    def site_beside(
        self, rng: np.random.Generator, anchors: list[Voxel], *, mm: float
    ) -> Voxel | None:
        """Draw a free voxel at a normally distributed distance, of sd `mm`, from an anchor."""
        steps = rng.standard_normal((_MAX_TRIES, 3)) * (mm / np.array(self.spacing))
        chosen = np.array(anchors)[rng.integers(len(anchors), size=_MAX_TRIES)]
        candidates = np.rint(chosen + steps).astype(int)
        inside = ((candidates >= 0) & (candidates < self.white.shape)).all(axis=1)
        return self._first_free(candidates[inside])

    def any_site(self, rng: np.random.Generator) -> Voxel | None:
        """Draw any free voxel of white matter; None if there is none."""
        free = np.flatnonzero(self.white)
        if not len(free):
            return None
        return self._first_free(np.array([np.unravel_index(rng.choice(free), self.white.shape)]))

    def _weighted(self, rng: np.random.Generator, weights: Floats) -> Voxel | None:
        """Draw a free voxel by cumulative weight; None if all candidates are occupied."""
        if not len(weights) or weights[-1] <= 0:
            return None
        picks = np.searchsorted(weights, weights[-1] * rng.random(_MAX_TRIES), side="right")
        voxels = self._sites.voxels[np.minimum(picks, len(weights) - 1)]
        return self._first_free(np.stack(np.unravel_index(voxels, self.white.shape), axis=1))

    def _first_free(self, candidates: npt.NDArray[np.intp]) -> Voxel | None:
        """Return the first of the voxels [n, 3] that is free, or None."""
        free = np.flatnonzero(self.white[candidates[:, 0], candidates[:, 1], candidates[:, 2]])
        if not len(free):
            return None
        s, h, w = candidates[free[0]].tolist()
        return s, h, w
