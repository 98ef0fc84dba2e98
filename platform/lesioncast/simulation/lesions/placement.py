"""Place all lesions that a subject could have: baseline lesions, then new ones in rank order.

The new lesions of a period are placed once, as many as the most active arm has. Arm a shows those
with rank <= Y(a). So every counterfactual mask is exact, and a mask with fewer lesions is part of
any mask with more. New lesions of a period never touch (26-connectivity), so the number of
connected components is the number of lesions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.errors import PlacementError
from lesioncast.simulation.anatomy import Anatomy
from lesioncast.simulation.disease import PERIODS, Patient
from lesioncast.simulation.lesions.shapes import Lesion, RadiusDistribution, grow_lesion
from lesioncast.simulation.lesions.sites import (
    Axes,
    FreeTissue,
    SiteWeights,
    lesion_site_weights,
    spacing_of,
)

# Share of the lesions that arise near an existing lesion.
NEAR_SHARE = 0.45


@dataclass(frozen=True)
class SimulatedLesions:
    """All lesions that a subject could have under any arm."""

    #: Lesions of w000, the enhancing ones first.
    baseline: tuple[Lesion, ...]
    #: `new[period][rank - 1]`: new lesions of each period in rank order, enough for every arm.
    new: tuple[tuple[Lesion, ...], ...]


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
    return grow_lesion(rng, allowed, anatomy.ventricle_distance, at, free.spacing, radius.draw(rng))
