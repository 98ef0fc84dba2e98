"""Which lesions a subject could have: baseline lesions, then new ones in rank order.

New lesions of a period are placed once, as many as the most active arm has, in rank order. Arm a
shows those with rank <= Y(a), so every counterfactual mask is exact and masks are nested in count.
New lesions of a period never touch each other (26-connectivity), so components count lesions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from lesioncast.errors import PlacementError
from lesioncast.simulation.anatomy import Anatomy
from lesioncast.simulation.disease import PERIODS, Patient
from lesioncast.simulation.lesion_sites import (
    CONNECTIVITY_26,
    Axes,
    FreeTissue,
    Voxel,
    Window,
    lesion_site_weights,
    spacing_of,
)

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_NEAR_SHARE = 0.45  # of the lesions arise near existing or enhancing ones
_ENHANCING_SHARE = 0.3  # of the new lesions still enhance at the session that shows them
_LUMPS = 0.13


@dataclass(frozen=True)
class Lesion:
    """One lesion in its window of the box."""

    window: Window
    mask: Mask
    occupancy: Array  # [0, 1], 1/2 at the edge
    centre: Voxel
    brightness: float  # FLAIR excess, in units of white matter
    enhances: bool  # takes up gadolinium while it is new


@dataclass(frozen=True)
class SimulatedLesions:
    """All lesions a subject could have: `new[period][rank - 1]`, enough for every arm."""

    baseline: tuple[Lesion, ...]
    new: tuple[tuple[Lesion, ...], ...]


@dataclass(frozen=True)
class _RadiusDistribution:
    """Lognormal radius in mm, within limits."""

    median: float
    spread: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        radius = self.median * np.exp(self.spread * rng.standard_normal())
        return float(np.clip(radius, self.low, self.high))


_BASELINE_RADIUS = _RadiusDistribution(3.2, 0.40, 1.5, 8.0)
_NEW_LESION_RADIUS = _RadiusDistribution(3.4, 0.26, 2.0, 6.0)


def place_lesions(
    rng: np.random.Generator, anatomy: Anatomy, axes: Axes, patient: Patient
) -> SimulatedLesions:
    """Baseline lesions, the enhancing ones first, then each period's new ones in rank order.

    Raises PlacementError where the grid leaves no room for a new lesion.
    """
    spacing = spacing_of(axes)
    everywhere = FreeTissue(lesion_site_weights(anatomy, axes, slab_only=False), spacing)
    baseline: list[Lesion] = []
    for _ in range(max(patient.t2_count, patient.gad_count)):
        baseline.append(_place(rng, everywhere, anatomy, baseline, patient, _BASELINE_RADIUS))
    taken = list(baseline)
    new: list[tuple[Lesion, ...]] = []
    slab = lesion_site_weights(anatomy, axes, slab_only=True)
    for period in range(len(PERIODS)):
        ground = FreeTissue(slab, spacing)
        earlier = len(taken)
        for lesion in taken:
            ground.occupy(lesion.window, lesion.mask)
        # Later lesions seek places near these whatever the arm shows: a place is prone by nature.
        for _ in range(int(patient.counts[period].max())):
            lesion = _place(rng, ground, anatomy, taken, patient, _NEW_LESION_RADIUS)
            ground.occupy_with_margin(lesion.window, lesion.mask)
            taken.append(lesion)
        new.append(tuple(taken[earlier:]))
    return SimulatedLesions(tuple(baseline), tuple(new))


def _place(
    rng: np.random.Generator,
    ground: FreeTissue,
    anatomy: Anatomy,
    others: list[Lesion],
    patient: Patient,
    radius: _RadiusDistribution,
) -> Lesion:
    """One more lesion of a kind and place that suit the patient."""
    cortical = bool(rng.random() < patient.cortical)
    at = None
    if cortical:
        at = ground.juxtacortical_site(rng)
    elif others and rng.random() < _NEAR_SHARE:
        at = ground.site_beside(rng, [lesion.centre for lesion in others])
    at = at or ground.deep_site(rng) or ground.any_site(rng)
    if at is None:
        raise PlacementError(
            f"subject {patient.index}: expected free white matter for one more lesion, got none "
            f"left at a spacing of {ground.spacing} mm; use smaller voxels or a larger field"
        )
    reach = ground.white | ground.cortex if cortical else ground.white
    return _grow(rng, reach, anatomy.ventricle_distance, at, ground.spacing, radius.draw(rng))


def _grow(
    rng: np.random.Generator,
    reach: Mask,
    distance: Array,
    at: Voxel,
    spacing: tuple[float, ...],
    radius: float,
) -> Lesion:
    """A lesion at `at`: one connected piece within `reach`, at least its central voxel."""
    window, occupancy = _ellipsoid_occupancy(rng, distance, at, spacing, radius)
    mask = (occupancy > 0.5) & reach[window]
    centre = tuple(voxel - part.start for voxel, part in zip(at, window, strict=True))
    mask[centre] = True
    pieces, count = ndimage.label(mask, CONNECTIVITY_26)
    if count > 1:
        mask = pieces == pieces[centre]
    return Lesion(
        window=window,
        mask=mask,
        occupancy=np.where(mask, np.maximum(occupancy, 0.5), occupancy),
        centre=at,
        brightness=float(rng.uniform(0.25, 0.60)),
        enhances=bool(rng.random() < _ENHANCING_SHARE),
    )


def _ellipsoid_occupancy(
    rng: np.random.Generator,
    distance: Array,
    at: Voxel,
    spacing: tuple[float, ...],
    radius: float,
) -> tuple[Window, Array]:
    """Occupancy of a lumpy ellipsoid about `at`, in a window with a free margin around it."""
    forward = _direction(rng, distance, at)
    stretch = rng.uniform(1.0, 1.7)
    across, along = radius * stretch ** (-1 / 3), radius * stretch ** (2 / 3)
    furthest = along / (1 - _LUMPS) ** 2
    window, offsets = [], []
    for voxel, size, step in zip(at, distance.shape, spacing, strict=True):
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
        surface *= 1 + _LUMPS * np.sin(phase)
    edge = max(2.5, spacing[1])  # mm from inside to outside
    occupancy = special.expit((1 - surface) * across * (4 / edge)).astype(np.float32)
    return (window[0], window[1], window[2]), occupancy


def _direction(rng: np.random.Generator, distance: Array, at: Voxel) -> npt.NDArray[np.float64]:
    """Away from the ventricles where these are near (Dawson's fingers), else any direction."""
    direction = rng.standard_normal(3)
    if distance[at] < 8:
        around = tuple(slice(max(0, voxel - 1), voxel + 2) for voxel in at)
        near = distance[around]
        for axis in range(3):
            slope = near.take(-1, axis).mean() - near.take(0, axis).mean()
            direction[axis] = slope + 0.3 * direction[axis]
    return direction / (np.linalg.norm(direction) + 1e-9)
