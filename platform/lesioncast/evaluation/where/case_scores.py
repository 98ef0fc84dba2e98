"""Make every method's map and sampled masks of one case, and score them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Floats, Mask, Spacing
from lesioncast.bundle.bundle import load_bundle
from lesioncast.evaluation.features.image_features import observed_outcome
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask, compare_masks
from lesioncast.evaluation.metrics.rng import RngStream
from lesioncast.evaluation.where.atlas import Voxels
from lesioncast.evaluation.where.density import brain_of, density_in
from lesioncast.evaluation.where.kernel_score import kernel_scores, kernel_scores_of_empty
from lesioncast.evaluation.where.map_scores import score_map
from lesioncast.evaluation.where.mask_draws import StoredLesions, masks_without_networks
from lesioncast.evaluation.where.measurements import (
    ATLAS,
    CLIMATOLOGY,
    EVEN,
    EXACT,
    NETWORKS,
    OTHER_HISTORY,
    OTHER_IMAGES,
    PRIOR_OTHER_HISTORY,
    PRIOR_OTHER_IMAGES,
    RINGS,
    SAMPLES,
    SPATIAL_PRIOR,
    CaseMaps,
    CaseWhere,
    SampleScores,
    WhereTask,
)
from lesioncast.evaluation.where.rings import older_lesions, ring_of_voxels
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.marginal_map import PredictMap, make_map_predictor
from lesioncast.forecasting.regional_risk import risks_of_map
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ConditioningArrays, ModelInput, Read
from lesioncast.imaging.features.image_features import CaseImages
from lesioncast.imaging.lesions import components
from lesioncast.simulation.bids import subject_index
from lesioncast.simulation.outcome_law.redraw import LastPeriod, last_period
from lesioncast.simulation.settings import SimulationSettings
from storage import Case, CaseArrays, Location, Store, open_store
from storage.preprocess.grid import SlabGrid, to_slab

logger = logging.getLogger(__name__)

Volume = npt.NDArray[np.floating]
PriorDensity = Callable[[ConditioningArrays], Volume | None]
"""Computes the spatial prior's density [s, h, w]; returns None for a bundle without one."""


def no_prior(_: ConditioningArrays) -> None:
    """Return None, for a bundle without a spatial prior."""


@dataclass(frozen=True)
class Baselines:
    """What training cases give: the smoothed atlas [s, h, w] and the rates of the rings [ring].

    `stored` are their new lesions, which the map of a spatial prior places; none leaves masks
    without networks out.
    """

    atlas: Floats
    ring_rates: Floats
    stored: StoredLesions = field(default_factory=StoredLesions)


@dataclass(frozen=True)
class NetworkMaps:
    """The maps that a bundle makes of an input, and how inputs are read.

    `masks` are the positions of masks among the channels of an input. `ratios` are the bundle's
    touching ratios of regions; without any it states no regional risk in closed form.
    """

    predict: PredictMap
    read: Read
    masks: list[int]
    prior: PriorDensity = no_prior
    ratios: Mapping[str, float] = field(default_factory=dict)

    def maps(self, task: WhereTask, arm: int) -> dict[str, Volume]:
        """Return the maps from the case's own images and, if asked for, from those of another.

        They are those of the networks and, where the bundle has one, of the spatial prior alone.
        """
        own = self.read(ModelInput(task.case))
        maps = self._both(own, arm, (SPATIAL_PRIOR, NETWORKS))
        if task.other is not None:
            other = self.read(ModelInput(task.other))
            history = own.condition.copy()
            history[self.masks] = other.condition[self.masks]
            images = other._replace(covariates=own.covariates)
            maps |= self._both(images, arm, (PRIOR_OTHER_IMAGES, OTHER_IMAGES))
            history_of_other = own._replace(condition=history)
            maps |= self._both(history_of_other, arm, (PRIOR_OTHER_HISTORY, OTHER_HISTORY))
        return maps

    def regions(
        self, task: WhereTask, arm: int, images: CaseImages, probability: Volume | None
    ) -> dict[str, float]:
        """Return the regional risks that a forecast of the case states in closed form.

        `probability` is the networks' map, None where it was not computed. Empty where a forecast
        states none.
        """
        if not self.ratios or task.expected is None or not images.parcellation.any():
            return {}
        if probability is None:
            probability = self.predict(self.read(ModelInput(task.case)), arm)
        return risks_of_map(
            np.asarray(probability, np.float32), images.parcellation, self.ratios, task.expected
        )

    def density(self, task: WhereTask, brain: Mask) -> Floats | None:
        """Return the spatial prior's density in the brain [s, h, w]; None without such a prior."""
        density = self.prior(self.read(ModelInput(task.case)))
        if density is None:
            return None
        inside = density.astype(np.float64) * brain
        return np.asarray(inside / inside.sum())

    def _both(
        self, inputs: ConditioningArrays, arm: int, keys: tuple[str, str]
    ) -> dict[str, Volume]:
        """Return the maps of the prior, if there is one, and of the networks under `keys`."""
        of_prior, of_networks = keys
        density = self.prior(inputs)
        maps = {} if density is None else {of_prior: density}
        return {**maps, of_networks: self.predict(inputs, arm)}


@dataclass(frozen=True)
class ExactLaw:
    """The law of a simulated case, which no forecast can beat on average, on its slab."""

    period: LastPeriod
    grid: SlabGrid

    def density(self) -> Floats:
        """Return the density of new-lesion voxels, [s, h, w]."""
        return to_slab(self.period.density(), self.grid, order=0)

    def redraw(self, seed: int, *, number: int | None = None) -> Mask:
        """Draw the last period once more; with a `number` of lesions only their places."""
        return to_slab(self.period.redraw(seed, number=number), self.grid, order=0)


def build_case_scorer(
    bundle: Path,
    store: Location,
    baselines: Baselines,
    simulation: SimulationSettings | None,
    *,
    device: str,
) -> Callable[[WhereTask], CaseWhere]:
    """Load a bundle, open a store, and return a function that scores a case: a Ray actor's state.

    `simulation` are the settings of a simulated trial; None leaves the exact law out.
    """
    loaded, opened = load_bundle(bundle, device=device), open_store(store)
    encode = PatientEncoder(loaded, device=device)
    networks = NetworkMaps(
        make_map_predictor(loaded, encode),
        store_reader(opened, loaded.config.model),
        loaded.config.model.control.masks,
        # The networks' maps of the same inputs use it too; `encode` computes it once.
        encode.density,
        loaded.config.touching_ratios,
    )
    return partial(
        score_case, store=opened, baselines=baselines, networks=networks, simulation=simulation
    )


def score_case(
    task: WhereTask,
    *,
    store: Store,
    baselines: Baselines,
    networks: NetworkMaps,
    simulation: SimulationSettings | None,
) -> CaseWhere:
    """Score the maps and the sampled masks of one test case."""
    case, images, spacing = store.cases[task.case], store.read(task.case), store.spec.spacing
    observed = observed_outcome(images)
    assert observed is not None
    brain = brain_of(images)
    inside = observed.net2 & brain
    needs_law = simulation is not None and (task.score_samples or bool(inside.any()))
    law = exact_law(simulation, case, observed.net2) if simulation and needs_law else None
    maps: dict[str, Floats] = {}
    probability: Volume | None = None
    if inside.any():
        volumes = _baseline_maps(images, baselines, spacing)
        volumes |= networks.maps(task, case.arm_index)
        probability = volumes[NETWORKS]
        volumes[SAMPLES] = masks_of(task.sampled, brain.shape).mean(axis=0)
        volumes |= {} if law is None else {EXACT: law.density()}
        maps = {key: density_in(brain, volume) for key, volume in volumes.items()}
    sampled = {}
    if task.score_samples:
        sampled = _sampled_masks(task, law, brain.shape)
        sampled |= _masks_without_networks(task, networks.density(task, brain), baselines.stored)
    labels = components(observed.net2)[0][brain]
    return CaseWhere(
        case=task.case,
        arm=case.arm_index,
        brain_voxels=int(brain.sum()),
        lesion_voxels=int(inside.sum()),
        lesion_voxels_outside=int((observed.net2 & ~brain).sum()),
        maps={key: score_map(density, maps[ATLAS], labels) for key, density in maps.items()},
        samples={key: score_samples(masks, observed, spacing) for key, masks in sampled.items()},
        kernel_of_empty=kernel_scores_of_empty(observed.net2, spacing),
        figure=_figure_maps(maps, brain, task) if task.keep_maps else None,
        regions=networks.regions(task, case.arm_index, images, probability),
    )


def _baseline_maps(images: CaseArrays, baselines: Baselines, spacing: Spacing) -> dict[str, Volume]:
    ring = ring_of_voxels(older_lesions(images), spacing)
    return {
        EVEN: np.ones(baselines.atlas.shape),
        ATLAS: baselines.atlas,
        RINGS: baselines.atlas * baselines.ring_rates[ring],
    }


def exact_law(settings: SimulationSettings, case: Case, observed: Mask) -> ExactLaw | None:
    """Return the law of a simulated case on its slab.

    Return None, and log a warning, if the rebuilt subject has other new lesions than those
    `observed` [s, h, w]: then the trial's files are not those of its settings.
    """
    index = subject_index(case.subject)
    period = None if index is None else last_period(settings, index)
    if period is None or not _agrees(period, case, observed):
        logger.warning(
            "%s: expected the subject of the trial's simulation settings, got other new lesions; "
            "the exact law is left out",
            case.subject,
        )
        return None
    return ExactLaw(period, case.grid)


def _agrees(period: LastPeriod, case: Case, observed: Mask) -> bool:
    """Return whether a rebuilt subject has the arm and the observed new lesions of a case."""
    outcome = period.outcome()
    return (
        period.patient.arm == case.arm
        and outcome.shape == case.grid.shape
        and np.array_equal(to_slab(outcome, case.grid, order=0), observed)
    )


def masks_of(voxels: tuple[Voxels, ...], shape: tuple[int, ...]) -> Bools:
    """Return masks [k, s, h, w] from the flat indices of their lesion voxels."""
    masks = np.zeros((len(voxels), *shape), bool)
    for mask, places in zip(masks, voxels, strict=True):
        mask.flat[places] = True
    return masks


def _sampled_masks(
    task: WhereTask, law: ExactLaw | None, shape: tuple[int, ...]
) -> dict[str, Bools]:
    """Return masks of the networks, of the arm's training cases and of the law, k of each."""
    sampled = {
        NETWORKS: masks_of(task.sampled, shape),
        CLIMATOLOGY: masks_of(task.climatology, shape),
    }
    if law is not None:
        sampled[EXACT] = np.stack([law.redraw(seed) for seed in range(len(task.sampled))])
    return sampled


def _masks_without_networks(
    task: WhereTask, density: Floats | None, stored: StoredLesions
) -> dict[str, Bools]:
    """Return masks by the spatial prior alone, each as large as a sample of the networks.

    There are none without a spatial prior, whose `density` is then None, or stored lesions.
    """
    if density is None or not stored.lesions:
        return {}
    voxels = [len(sample) for sample in task.sampled]
    rngs = [
        np.random.default_rng([RngStream.MASK_DRAWS, task.case, sample])
        for sample in range(len(voxels))
    ]
    return masks_without_networks(density, stored, voxels, rngs)


def score_samples(masks: Bools, observed: ObservedMask, spacing: Spacing) -> SampleScores:
    """Score sampled masks [k, s, h, w] of one case."""
    return SampleScores(
        kernel=kernel_scores(masks, observed.net2, spacing),
        comparison=compare_masks(masks, observed, spacing),
        voxels=float(masks.sum() / len(masks)),
    )


def _figure_maps(maps: Mapping[str, Floats], brain: Mask, task: WhereTask) -> CaseMaps:
    """Return densities [n] as volumes, relative to the even brain."""
    volumes = {}
    for key, density in maps.items():
        volumes[key] = np.zeros(brain.shape, np.float32)
        volumes[key][brain] = density * len(density)
    return CaseMaps(volumes, brain, task.sampled, task.p_active)
