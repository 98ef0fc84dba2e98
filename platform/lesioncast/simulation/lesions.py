"""Place all lesions that a subject could have: baseline lesions, then new ones in rank order.

The new lesions of a period are placed once, as many as the most active arm has. Arm a shows those
with rank <= Y(a). So every counterfactual mask is exact, and a mask with fewer lesions is part of
any mask with more. New lesions of a period never touch (26-connectivity), so the number of
connected components is the number of lesions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from lesioncast.arrays import Float32s, Floats, Mask
from lesioncast.errors import PlacementError
from lesioncast.simulation.anatomy import Anatomy
from lesioncast.simulation.disease import PERIODS, Patient
from lesioncast.simulation.lesion_sites import (
    Axes,
    FreeTissue,
    SiteWeights,
    Voxel,
    Window,
    lesion_site_weights,
    spacing_of,
)
from storage.layout import CONNECTIVITY_26

# Share of the lesions that arise near an existing lesion.
NEAR_SHARE = 0.45
# Share of the new lesions that still enhance at the session that first shows them.
_ENHANCING_SHARE = 0.3
# Relative amplitude of the waves that make an ellipsoid irregular.
_LUMPINESS = 0.13


@dataclass(frozen=True)
class Lesion:
    """One lesion in its window of the target grid's box."""

    #: Part of the box that contains the lesion with a margin.
    window: Window
    #: Voxels of the lesion in the window.
    mask: Mask
    #: Lesion fraction of each voxel in the window, in [0, 1]; 1/2 at the edge.
    occupancy: Float32s
    centre: Voxel
    #: FLAIR excess relative to white matter.
    brightness: float
    #: True if the lesion takes up gadolinium while it is new.
    enhances: bool


@dataclass(frozen=True)
class SimulatedLesions:
    """All lesions that a subject could have under any arm."""

    #: Lesions of w000, the enhancing ones first.
    baseline: tuple[Lesion, ...]
    #: `new[period][rank - 1]`: new lesions of each period in rank order, enough for every arm.
    new: tuple[tuple[Lesion, ...], ...]


@dataclass(frozen=True)
class RadiusDistribution:
    """Lognormal distribution of radii in mm, clipped to [low, high]."""

    median: float
    spread: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one radius."""
        radius = self.median * np.exp(self.spread * rng.standard_normal())
        return float(np.clip(radius, self.low, self.high))


_BASELINE_RADIUS = RadiusDistribution(3.2, 0.40, 1.5, 8.0)
NEW_LESION_RADIUS = RadiusDistribution(3.4, 0.26, 2.0, 6.0)


@dataclass(frozen=True)
class SlabTissue:
    """Tissue of a subject in which new lesions arise: that of the central slab."""

    anatomy: Anatomy
    sites: SiteWeights
    #: Voxel size (s, h, w) in mm.
    spacing: tuple[float, ...]


def slab_tissue(anatomy: Anatomy, axes: Axes) -> SlabTissue:
    """Return the tissue of the central slab; `axes` are those of the target grid."""
    sites = lesion_site_weights(anatomy, axes, slab_only=True)
    return SlabTissue(anatomy, sites, spacing_of(axes))


def place_lesions(
    rng: np.random.Generator, anatomy: Anatomy, axes: Axes, patient: Patient
) -> SimulatedLesions:
    """Place the baseline lesions, then the new lesions of each period in rank order.

    Raises PlacementError if no white matter is free for a lesion.
    """
    sites = lesion_site_weights(anatomy, axes, slab_only=False)
    everywhere = FreeTissue(sites, spacing_of(axes))
    baseline: list[Lesion] = []
    for _ in range(max(patient.t2_count, patient.gad_count)):
        baseline.append(_place(rng, everywhere, anatomy, baseline, patient, _BASELINE_RADIUS))
    taken = list(baseline)
    new: list[tuple[Lesion, ...]] = []
    slab = slab_tissue(anatomy, axes)
    for period in range(len(PERIODS)):
        number = int(patient.counts[period].max())
        new.append(place_new_lesions(rng, slab, taken, patient, number=number))
        taken.extend(new[-1])
    return SimulatedLesions(tuple(baseline), tuple(new))


def place_new_lesions(
    rng: np.random.Generator,
    slab: SlabTissue,
    earlier: Sequence[Lesion],
    patient: Patient,
    *,
    number: int,
) -> tuple[Lesion, ...]:
    """Place `number` new lesions of one period in rank order, given all `earlier` lesions.

    Raises PlacementError if no white matter is free for a lesion.
    """
    free = free_tissue(slab, earlier)
    # Later lesions may be placed near any earlier one, even if an arm does not show that one:
    # sites must not depend on the arm, or counterfactual masks would not be nested.
    taken = list(earlier)
    for _ in range(number):
        lesion = _place(rng, free, slab.anatomy, taken, patient, NEW_LESION_RADIUS)
        free.occupy_with_margin(lesion.window, lesion.mask)
        taken.append(lesion)
    return tuple(taken[len(earlier) :])


def free_tissue(slab: SlabTissue, earlier: Sequence[Lesion]) -> FreeTissue:
    """Return the tissue of the slab that no `earlier` lesion occupies."""
    free = FreeTissue(slab.sites, slab.spacing)
    for lesion in earlier:
        free.occupy(lesion.window, lesion.mask)
    return free


def _place(
    rng: np.random.Generator,
    free: FreeTissue,
    anatomy: Anatomy,
    others: list[Lesion],
    patient: Patient,
    radius: RadiusDistribution,
) -> Lesion:
    """Place one lesion: cortical, near another lesion or deep, by the patient's probabilities."""
    cortical = bool(rng.random() < patient.cortical)
    at = None
    if cortical:
        at = free.juxtacortical_site(rng)
    elif others and rng.random() < NEAR_SHARE:
        at = free.site_beside(rng, [lesion.centre for lesion in others])
    at = at or free.deep_site(rng) or free.any_site(rng)
    if at is None:
        raise PlacementError(
            f"subject {patient.index}: expected free white matter for one more lesion, got none "
            f"left at a spacing of {free.spacing} mm; use smaller voxels or a larger grid"
        )
    allowed = free.white | free.cortex if cortical else free.white
    return _grow(rng, allowed, anatomy.ventricle_distance, at, free.spacing, radius.draw(rng))


def _grow(
    rng: np.random.Generator,
    allowed: Mask,
    ventricle_distance: Float32s,
    at: Voxel,
    spacing: tuple[float, ...],
    radius: float,
) -> Lesion:
    """Grow a connected lesion around the voxel `at` within the tissue `allowed`.

    The lesion has at least its central voxel.
    """
    window, occupancy = ellipsoid_occupancy(rng, ventricle_distance, at, spacing, radius)
    mask = (occupancy > 0.5) & allowed[window]
    centre = tuple(voxel - part.start for voxel, part in zip(at, window, strict=True))
    mask[centre] = True
    labels, count = ndimage.label(mask, CONNECTIVITY_26)
    if count > 1:  # other tissue or lesions cut it: keep the part with the centre
        mask = labels == labels[centre]
    return Lesion(
        window=window,
        mask=mask,
        occupancy=np.where(mask, np.maximum(occupancy, 0.5), occupancy),
        centre=at,
        brightness=float(rng.uniform(0.25, 0.60)),
        enhances=bool(rng.random() < _ENHANCING_SHARE),
    )


def ellipsoid_occupancy(
    rng: np.random.Generator,
    ventricle_distance: Float32s,
    at: Voxel,
    spacing: tuple[float, ...],
    radius: float,
) -> tuple[Window, Float32s]:
    """Return the occupancy of an irregular ellipsoid about `at`, in a window with a free margin."""
    forward = _long_axis(rng, ventricle_distance, at)
    stretch = rng.uniform(1.0, 1.7)
    across, along = radius * stretch ** (-1 / 3), radius * stretch ** (2 / 3)
    furthest = along / (1 - _LUMPINESS) ** 2
    window, offsets = [], []
    for voxel, size, step in zip(at, ventricle_distance.shape, spacing, strict=True):
        half = int(furthest / step + 1.5) + 1
        part = slice(max(0, voxel - half), min(size, voxel + half + 1))
        offsets.append((np.arange(part.start, part.stop) - voxel - rng.uniform(-0.5, 0.5)) * step)
        window.append(part)
    s, h, w = np.ix_(*offsets)
    ahead = forward[0] * s + forward[1] * h + forward[2] * w
    beside = np.clip(s * s + h * h + w * w - ahead * ahead, 0, None)
    surface = np.sqrt(beside / across**2 + (ahead / along) ** 2)  # 1 on the ellipsoid
    for k in rng.standard_normal((2, 3)) * 2.5 / radius:
        phase = k[0] * s + k[1] * h + k[2] * w + rng.uniform(0, 2 * np.pi)
        surface *= 1 + _LUMPINESS * np.sin(phase)
    edge = max(2.5, spacing[1])  # mm from inside to outside
    occupancy = special.expit((1 - surface) * across * (4 / edge)).astype(np.float32)
    return (window[0], window[1], window[2]), occupancy


def _long_axis(rng: np.random.Generator, ventricle_distance: Float32s, at: Voxel) -> Floats:
    """Draw the long axis of a lesion: away from near ventricles (Dawson's fingers), else random."""
    direction = rng.standard_normal(3)
    if ventricle_distance[at] < 8:
        around = tuple(slice(max(0, voxel - 1), voxel + 2) for voxel in at)
        near = ventricle_distance[around]
        for axis in range(3):
            slope = near.take(-1, axis).mean() - near.take(0, axis).mean()
            direction[axis] = slope + 0.3 * direction[axis]
    return direction / (np.linalg.norm(direction) + 1e-9)
