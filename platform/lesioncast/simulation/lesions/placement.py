"""Place all lesions that a subject could have: baseline lesions, then new ones in rank order.

The new lesions of a period are placed once, as many as the most active arm has. Arm a shows those
with rank <= Y(a). So every counterfactual mask is exact, and a mask with fewer lesions is part of
any mask with more. New lesions of a period never touch (26-connectivity), so the number of
connected components is the number of lesions. Some of them enlarge an older lesion, which they
touch.
"""

from dataclasses import dataclass, replace

import numpy as np

from lesioncast.arrays import Bools, Float32s, Floats
from lesioncast.errors import PlacementError
from lesioncast.simulation.anatomy import Anatomy, target_grid
from lesioncast.simulation.disease import PERIODS, Patient
from lesioncast.simulation.lesions.enlarging import LOBE_RADIUS, draw_enlargement, host_weights
from lesioncast.simulation.lesions.measured import MEASURED_RADIUS
from lesioncast.simulation.lesions.radii import RadiusDistribution
from lesioncast.simulation.lesions.shapes import Lesion, grow_lesion
from lesioncast.simulation.lesions.sites import (
    NEARBY,
    FreeTissue,
    NearbyLaw,
    SiteWeights,
    lesion_site_weights,
    spacing_of,
)
from lesioncast.simulation.lesions.susceptibility import (
    draw_active,
    prone_places,
    regional_propensity,
)
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import LesionSizes, SimulationSettings

BASELINE_RADIUS: dict[LesionSizes, RadiusDistribution] = {
    "lognormal": RadiusDistribution(3.2, 0.40, 1.5, 8.0),
    "measured": MEASURED_RADIUS,
}
NEW_LESION_RADIUS = RadiusDistribution(3.4, 0.26, 2.0, 6.0)


@dataclass(frozen=True)
class Brain:
    """One subject's tissue, and the settings by which lesions arise in it."""

    settings: SimulationSettings
    patient: Patient
    anatomy: Anatomy

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size (s, h, w) in mm."""
        return spacing_of(target_grid(self.settings.shape, self.settings.spacing).axes)

    @property
    def nearby(self) -> NearbyLaw:
        """Law by which lesions arise beside older ones."""
        return NEARBY[self.settings.location_law]

    def sites(self, propensity: Float32s | None, *, slab_only: bool) -> SiteWeights:
        """Return the weights of lesion sites, in the central slab or in the whole brain."""
        return lesion_site_weights(
            self.anatomy,
            target_grid(self.settings.shape, self.settings.spacing).axes,
            slab_only=slab_only,
            law=self.settings.location_law,
            propensity=propensity,
        )


@dataclass(frozen=True)
class PeriodStart:
    """What decides where the new lesions of a period arise: all that precedes them."""

    brain: Brain
    #: Sites in the central slab.
    sites: SiteWeights
    #: All lesions placed before the period, whether or not an arm shows them.
    earlier: tuple[Lesion, ...]
    #: Which `earlier` lesions are active in the period, [n]; none if no lesion enlarges.
    active: Bools
    #: How prone to lesions each voxel is in the period, from 0 to 1, [s, h, w]; None without.
    prone: Float32s | None

    def free_tissue(self) -> FreeTissue:
        """Return the tissue of the slab that no `earlier` lesion occupies."""
        free = FreeTissue(self.sites, self.brain.spacing)
        for lesion in self.earlier:
            free.occupy(lesion.window, lesion.mask)
        return free


@dataclass(frozen=True)
class SimulatedLesions:
    """All lesions that a subject could have under any arm."""

    #: Lesions of w000, the enhancing ones first.
    baseline: tuple[Lesion, ...]
    #: `new[period][rank - 1]`: new lesions of each period in rank order, enough for every arm.
    new: tuple[tuple[Lesion, ...], ...]
    #: What precedes the new lesions of each period.
    starts: tuple[PeriodStart, ...]


def place_lesions(
    settings: SimulationSettings, patient: Patient, anatomy: Anatomy
) -> SimulatedLesions:
    """Place the baseline lesions, then the new lesions of each period in rank order.

    Raises PlacementError if no white matter is free for a lesion.
    """
    brain = Brain(settings, patient, anatomy)
    rng = subject_rng(settings, patient.index, RngStream.LESIONS)
    activity = subject_rng(settings, patient.index, RngStream.ACTIVITY)
    propensity = regional_propensity(settings, patient.index)
    everywhere = FreeTissue(brain.sites(propensity, slab_only=False), brain.spacing)
    baseline = place_baseline(rng, brain, everywhere)
    slab = brain.sites(propensity, slab_only=True)
    taken = list(baseline)
    enhancing = [rank < patient.gad_count for rank in range(len(baseline))]
    starts: list[PeriodStart] = []
    new: list[tuple[Lesion, ...]] = []
    for period, prone in enumerate(prone_places(settings, patient.index)):
        active = np.zeros(len(taken), bool)
        if settings.enlarging_share:
            active = draw_active(activity, taken, enhancing)
        sites = _prefer_prone_places(slab, prone, settings.prone_places)
        starts.append(PeriodStart(brain, sites, tuple(taken), active, prone))
        number = int(patient.counts[period].max())
        new.append(place_new_lesions(rng, starts[-1], number=number))
        enhancing = [False] * len(taken) + [lesion.enhances for lesion in new[-1]]
        taken.extend(new[-1])
    assert len(new) == len(PERIODS)
    return SimulatedLesions(tuple(baseline), tuple(new), tuple(starts))


def place_baseline(rng: np.random.Generator, brain: Brain, tissue: FreeTissue) -> list[Lesion]:
    """Place the lesions of w000, the enhancing ones first. They may overlap.

    Raises PlacementError if there is no white matter.
    """
    radius = BASELINE_RADIUS[brain.settings.lesion_sizes]
    baseline: list[Lesion] = []
    for _ in range(max(brain.patient.t2_count, brain.patient.gad_count)):
        cortical = _draw_cortical(rng, brain.patient)
        baseline.append(_place(rng, tissue, brain, baseline, radius, cortical=cortical))
    return baseline


def place_new_lesions(
    rng: np.random.Generator, start: PeriodStart, *, number: int
) -> tuple[Lesion, ...]:
    """Place `number` new lesions of one period in rank order, given all that precedes them.

    Raises PlacementError if no white matter is free for a lesion.
    """
    free = start.free_tissue()
    weights = host_weights(start.earlier, start.active)
    # Later lesions may be placed near any earlier one, even if an arm does not show that one:
    # sites must not depend on the arm, or counterfactual masks would not be nested. For the same
    # reason any earlier lesion may enlarge.
    taken = list(start.earlier)
    share = start.brain.settings.enlarging_share
    for _ in range(number):
        cortical = _draw_cortical(rng, start.brain.patient)
        enlarges = share > 0 and not cortical and rng.random() < share
        lobe = _enlarge(rng, free, start, weights) if enlarges else None
        lesion = lobe or _place(rng, free, start.brain, taken, NEW_LESION_RADIUS, cortical=cortical)
        free.occupy_with_margin(lesion.window, lesion.mask)
        taken.append(lesion)
    return tuple(taken[len(start.earlier) :])


def _prefer_prone_places(sites: SiteWeights, prone: Float32s | None, share: float) -> SiteWeights:
    """Return `sites` such that a `share` of deep lesions arises where the tissue is prone."""
    if prone is None:
        return sites
    deep = np.diff(sites.deep, prepend=0.0)
    in_prone = deep * prone.ravel()[sites.voxels]
    if not in_prone.any():
        return sites
    mixed = (1 - share) * deep / deep.sum() + share * in_prone / in_prone.sum()
    return replace(sites, deep=np.cumsum(mixed))


def _draw_cortical(rng: np.random.Generator, patient: Patient) -> bool:
    return bool(rng.random() < patient.cortical)


def _enlarge(
    rng: np.random.Generator, free: FreeTissue, start: PeriodStart, weights: Floats
) -> Lesion | None:
    """Grow a lobe beside an earlier lesion; None if none has free white matter beside it."""
    drawn = draw_enlargement(rng, start.earlier, weights, free)
    if drawn is None:
        return None
    host, at = drawn
    near = start.brain.anatomy.ventricle_distance
    lobe = grow_lesion(rng, free.white, near, at, free.spacing, LOBE_RADIUS.draw(rng))
    return replace(lobe, brightness=host.brightness, enlarges=True)


def _place(
    rng: np.random.Generator,
    free: FreeTissue,
    brain: Brain,
    others: list[Lesion],
    radius: RadiusDistribution,
    *,
    cortical: bool,
) -> Lesion:
    """Place one separate lesion: cortical, or near another lesion, or deep."""
    at = None
    if cortical:
        at = free.juxtacortical_site(rng)
    elif others and rng.random() < brain.nearby.share:
        at = free.site_beside(rng, [lesion.centre for lesion in others], mm=brain.nearby.mm)
    at = at or free.deep_site(rng) or free.any_site(rng)
    if at is None:
        raise PlacementError(
            f"subject {brain.patient.index}: expected free white matter for one more lesion, got "
            f"none left at a spacing of {free.spacing} mm; use smaller voxels or a larger grid"
        )
    allowed = free.white | free.cortex if cortical else free.white
    near = brain.anatomy.ventricle_distance
    size = radius.draw(rng, float(near[at]))
    return grow_lesion(rng, allowed, near, at, free.spacing, size)
