"""White matter as the ground on which lesions arise: where they prefer to, and where there is room.

Preference (`Sites`) is fixed for a subject; room (`Ground`) shrinks as lesions take their place.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.simulation.anatomy import Anatomy
from lesioncast.simulation.template import CORTEX, WHITE

Mask = npt.NDArray[np.bool_]
Axes = tuple[npt.NDArray[np.float64], ...]
Voxel = tuple[int, int, int]
Window = tuple[slice, slice, slice]

CONNECTIVITY_26 = np.ones((3, 3, 3), bool)  # 26-connectivity
SLAB_MM = 45.0  # 15 slices of 3 mm: new lesions lie here (section 3, Dataset)
_NEAR_MM = 6.0
_MAX_TRIES = 40  # tries at one kind of site


@dataclass(frozen=True)
class SiteWeights:
    """A subject's white matter and cortex, and cumulative weights over the white voxels."""

    white: Mask  # [s, h, w]
    cortex: Mask
    voxels: npt.NDArray[np.intp]  # flat indices of `white`
    deep: npt.NDArray[np.float64]  # cumulative weight: near the ventricles, off the cortex
    juxtacortical: npt.NDArray[np.float64]


def lesion_site_weights(anatomy: Anatomy, axes: Axes, *, slab_only: bool) -> SiteWeights:
    """Where lesions may start; beyond the central slab never or, for old ones, less often."""
    thickness = spacing_of(axes)[0]
    beyond = np.clip(np.abs(axes[0]) + thickness / 2 - SLAB_MM / 2, 0, None)  # mm, [s]
    share = (beyond < 1e-6).astype(float) if slab_only else np.exp(-beyond / 8)
    within = (share > 0)[:, None, None]
    white = within & ((anatomy.labels == WHITE[0]) | (anatomy.labels == WHITE[1]))
    cortex = within & ((anatomy.labels == CORTEX[0]) | (anatomy.labels == CORTEX[1]))
    voxels = np.flatnonzero(white)
    near = anatomy.ventricle_distance.ravel()[voxels]
    depth = anatomy.cortex_distance.ravel()[voxels]
    shares = share[voxels // (white.shape[1] * white.shape[2])]
    rim = max(2.0, spacing_of(axes)[1])
    return SiteWeights(
        white=white,
        cortex=cortex,
        voxels=voxels,
        deep=np.cumsum(shares * (np.exp(-near / 5) + 0.05) * (depth > 2.5)),
        juxtacortical=np.cumsum(shares * (depth <= rim) * (near > 6)),
    )


def spacing_of(axes: Axes) -> tuple[float, ...]:
    """Voxel size in mm (s, h, w); of a single slice, which has no next, 1."""
    return tuple(float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes)


class FreeTissue:
    """What is still free of the white matter and, for lesions that reach there, of the cortex."""

    def __init__(self, sites: SiteWeights, spacing: tuple[float, ...]) -> None:
        self.spacing = spacing
        self.white = sites.white.copy()
        self.cortex = sites.cortex.copy()
        self._sites = sites

    def occupy(self, window: Window, mask: Mask) -> None:
        """Use up a lesion's voxels."""
        self.white[window] &= ~mask
        self.cortex[window] &= ~mask

    def occupy_with_margin(self, window: Window, mask: Mask) -> None:
        """Use up a lesion and every voxel that touches it; the window has room for these."""
        self.occupy(window, ndimage.binary_dilation(mask, CONNECTIVITY_26))

    def deep_site(self, rng: np.random.Generator) -> Voxel | None:
        """Periventricular or deep white matter."""
        return self._weighted(rng, self._sites.deep)

    def juxtacortical_site(self, rng: np.random.Generator) -> Voxel | None:
        """White matter that touches the cortex."""
        return self._weighted(rng, self._sites.juxtacortical)

    def site_beside(self, rng: np.random.Generator, anchors: list[Voxel]) -> Voxel | None:
        """Some millimetres from one of the `anchors`."""
        steps = rng.standard_normal((_MAX_TRIES, 3)) * (_NEAR_MM / np.array(self.spacing))
        chosen = np.array(anchors)[rng.integers(len(anchors), size=_MAX_TRIES)]
        tries = np.rint(chosen + steps).astype(int)
        inside = ((tries >= 0) & (tries < self.white.shape)).all(axis=1)
        return self._first_free(tries[inside])

    def any_site(self, rng: np.random.Generator) -> Voxel | None:
        """Wherever there is room; None where there is none."""
        free = np.flatnonzero(self.white)
        if not len(free):
            return None
        return self._first_free(np.array([np.unravel_index(rng.choice(free), self.white.shape)]))

    def _weighted(self, rng: np.random.Generator, weights: npt.NDArray[np.float64]) -> Voxel | None:
        if not len(weights) or weights[-1] <= 0:
            return None
        picks = np.searchsorted(weights, weights[-1] * rng.random(_MAX_TRIES), side="right")
        voxels = self._sites.voxels[np.minimum(picks, len(weights) - 1)]
        return self._first_free(np.stack(np.unravel_index(voxels, self.white.shape), axis=1))

    def _first_free(self, tries: npt.NDArray[np.intp]) -> Voxel | None:
        """The first of the voxels [n, 3] that is free."""
        free = np.flatnonzero(self.white[tries[:, 0], tries[:, 1], tries[:, 2]])
        if not len(free):
            return None
        s, h, w = tries[free[0]].tolist()
        return s, h, w
