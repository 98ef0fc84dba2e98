"""Draw whole masks from a spatial prior without networks: the bars for sampled masks.

A forecast with both priors draws how many lesion voxels a sample has, and the networks place them.
The draws here take the same number of voxels and the same map, and know nothing else of the
patient: independent voxels know no lesions at all, and stored lesions have the shapes and the
numbers of training cases.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize, special

from lesioncast.arrays import Bools, Floats, Ints, Mask
from lesioncast.evaluation.where.measurements import INDEPENDENT_VOXELS, STORED_LESIONS
from lesioncast.imaging.lesions import components
from storage.layout import CONNECTIVITY_26

Shape = npt.NDArray[np.int64]
"""Voxels of a lesion as offsets from its middle voxel, [n, 3]."""

# Training cases with about as many lesion voxels as a sample, of which one lends its lesions.
DONORS = 8
# Power of the map by which lesions are placed. By the map itself they would spread more than the
# map says, because a lesion covers voxels around the likely one. On validation cases the voxels of
# placed lesions then have the mean log density of observed ones, 1.8 over even; with 1 it is 1.4.
SHARPNESS = 1.5


def masks_without_networks(
    density: Floats,
    stored: "StoredLesions",
    voxels: Sequence[int],
    rngs: Sequence[np.random.Generator],
) -> dict[str, Bools]:
    """Return masks of independent voxels and of stored lesions, [k, s, h, w] each.

    They have about `voxels` [k] lesion voxels each, none where that is 0, and are placed by a
    density [s, h, w] whose sum is 1. Each has its own random numbers, `rngs` [k].
    """
    drawn: dict[str, Bools] = {
        key: np.zeros((len(voxels), *density.shape), bool)
        for key in (INDEPENDENT_VOXELS, STORED_LESIONS)
    }
    for row, (number, rng) in enumerate(zip(voxels, rngs, strict=True)):
        if number:
            drawn[INDEPENDENT_VOXELS][row] = draw_voxels(rng, density, number)
            drawn[STORED_LESIONS][row] = place_lesions(rng, density, stored.draw(rng, number))
    return drawn


def draw_voxels(rng: np.random.Generator, density: Floats, voxels: float) -> Mask:
    """Draw each voxel by itself, so that `voxels` are lesion on average, bool [s, h, w].

    `density` [s, h, w] has the sum 1. The odds of a lesion are the density times one factor, as
    where the sampler of the networks holds the number of voxels. A mask without any voxel gets the
    one that came nearest.
    """
    log_odds = np.log(np.maximum(density, np.finfo(np.float64).tiny))

    def excess(shift: float) -> float:
        return float(special.expit(log_odds + shift).sum()) - voxels

    shift = optimize.brentq(excess, -50.0, 800.0)
    margin = special.expit(log_odds + shift) - rng.random(density.shape)
    return np.asarray(margin > min(0.0, np.nextafter(margin.max(), -1)))


@dataclass(frozen=True)
class StoredLesions:
    """Lesions of training cases, those with the fewest lesion voxels first."""

    #: Lesions of each case.
    lesions: tuple[tuple[Shape, ...], ...] = ()

    @classmethod
    def of_masks(cls, masks: Iterable[Mask]) -> "StoredLesions":
        """Store the lesions of those masks [s, h, w] that have any."""
        lesions = (tuple(lesion_shapes(mask)) for mask in masks)
        return cls(tuple(sorted(filter(None, lesions), key=_voxels_of)))

    @cached_property
    def voxels(self) -> Ints:
        """Return the number of lesion voxels of each case, rising, [n]."""
        return np.array([_voxels_of(one) for one in self.lesions], np.int64)

    def draw(self, rng: np.random.Generator, voxels: float) -> tuple[Shape, ...]:
        """Return the lesions of one of the cases whose number of voxels is nearest to `voxels`."""
        nearest = np.argsort(np.abs(np.log(self.voxels / voxels)), kind="stable")[:DONORS]
        return self.lesions[int(rng.choice(nearest))]


def lesion_shapes(mask: Mask) -> list[Shape]:
    """Return the lesions of a mask [s, h, w], 26-connected, each about its middle voxel."""
    shapes = []
    for voxels in _voxels_by_label(*components(mask)):
        middle = voxels[np.argmin(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1))]
        shapes.append(voxels - middle)
    return shapes


def place_lesions(
    rng: np.random.Generator,
    density: Floats,
    shapes: Sequence[Shape],
    *,
    sharpness: float = SHARPNESS,
) -> Mask:
    """Place lesions by a density [s, h, w], one after the other, the largest first.

    A lesion lies at a place with a probability proportional to the geometric mean of the density
    over its voxels, to the power of SHARPNESS. It lies inside the volume and touches no other
    lesion of the mask. One for which no place is left is left out.
    """
    mask = np.zeros(density.shape, bool)
    log_density = np.log(np.maximum(density, np.finfo(np.float64).tiny))
    log_density = np.where(density > 0, log_density, -np.inf)
    for shape in sorted(shapes, key=len, reverse=True):
        weight = placement_weights(log_density, shape)
        total = weight.sum()
        if not total > 0:
            continue
        place = np.searchsorted(np.cumsum(weight.ravel()), rng.random() * total, side="right")
        middle = np.array(np.unravel_index(min(place, weight.size - 1), weight.shape))
        mask[tuple((middle + shape).T)] = True
        # The next lesion touches none of those that are placed.
        log_density[ndimage.binary_dilation(mask, CONNECTIVITY_26)] = -np.inf
    return mask


def placement_weights(log_density: Floats, shape: Shape) -> Floats:
    """Return the weight of each middle voxel of a lesion, [s, h, w], the greatest about 1."""
    reach = np.abs(shape).max(axis=0)
    padded = np.pad(log_density, [(size, size) for size in reach], constant_values=-np.inf)
    total = np.zeros(log_density.shape)
    slices, rows, columns = log_density.shape
    for s, h, w in (shape + reach).tolist():
        total += padded[s : s + slices, h : h + rows, w : w + columns]
    total *= SHARPNESS / len(shape)
    highest = total.max()
    return np.exp(total - highest) if np.isfinite(highest) else np.zeros(total.shape)


def _voxels_of(shapes: Sequence[Shape]) -> int:
    return sum(len(shape) for shape in shapes)


def _voxels_by_label(labels: npt.NDArray[np.int32], number: int) -> list[Shape]:
    """Return the voxels of each label 1 .. `number`, [n, 3] each."""
    voxels = np.argwhere(labels)
    label = labels[tuple(voxels.T)]
    return [voxels[label == one] for one in range(1, number + 1)]
