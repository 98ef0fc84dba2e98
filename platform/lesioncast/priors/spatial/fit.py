"""Fit the spatial prior to training cases."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Float32s, Floats, evenly_spaced
from lesioncast.priors.spatial.atlas import LesionAtlas
from lesioncast.priors.spatial.conditional_logit import (
    Controls,
    LinearModel,
    fit_conditional_logit,
)
from lesioncast.priors.spatial.features.history import history_of
from lesioncast.priors.spatial.features.tissue_classifier import TissueClassifier
from lesioncast.priors.spatial.features.voxels import VoxelFeatures
from lesioncast.priors.spatial.fit_tissue import fit_tissue
from lesioncast.priors.spatial.inputs import SpatialCase
from lesioncast.priors.spatial.patterns import PATTERNS, Pattern, reduced
from lesioncast.priors.spatial.prior import SpatialPrior
from lesioncast.priors.spatial.sampling import draw_controls
from lesioncast.priors.spatial.support import brain_support


@dataclass(frozen=True)
class SpatialFitSettings:
    """How the prior is fitted."""

    #: Active cases that the weights are fitted to, evenly over all; the atlas has all cases.
    cases: int = 300
    #: Control voxels of each case.
    controls: int = 500
    #: Strength of the penalty on squared standardised weights, per lesion voxel.
    penalty: float = 1e-3
    iterations: int = 30
    #: Fewest cases of a pattern of presence that get weights of their own.
    least_cases: int = 20
    #: Cases with FLAIR and parcellation that the tissue classifier is fitted to, and their voxels.
    classifier_cases: int = 120
    classifier_voxels: int = 500


@dataclass(frozen=True)
class CaseSample:
    """Features of one case in one pattern of presence."""

    #: Number of lesion voxels, and the sum of their features, [feature].
    voxels: int
    lesions: Floats
    #: Controls, [feature, control], and their log weights, [control].
    controls: Float32s
    log_weight: Float32s


def fit_spatial_prior(
    cases: Sequence[SpatialCase], settings: SpatialFitSettings, seed: int
) -> SpatialPrior:
    """Return the prior fitted to cases of one grid, the same for the same seed.

    Raises ValueError if no case has a new lesion.
    """
    active = [case for case in cases if case.outcome.any()]
    if not active:
        raise ValueError(
            f"spatial prior: expected training cases with new lesions, got none among {len(cases)};"
            " check the split"
        )
    total = np.asarray(np.sum([case.outcome for case in active], axis=0), np.float32)
    atlas = LesionAtlas(total, active[0].inputs.spacing)
    chosen = evenly_spaced(active, settings.cases)
    classifier = fit_tissue(
        active,
        cases_used=settings.classifier_cases,
        voxels=settings.classifier_voxels,
        seed=seed,
    )

    def sample(number: int) -> Mapping[Pattern, CaseSample]:
        rng = np.random.default_rng([seed, number])
        return sample_case(rng, chosen[number], atlas, classifier, controls=settings.controls)

    with ThreadPoolExecutor() as threads:
        sampled = list(threads.map(sample, range(len(chosen))))

    def fit(pattern: Pattern) -> tuple[Pattern, LinearModel] | None:
        own = [case[pattern] for case in sampled if pattern in case]
        if len(own) < settings.least_cases:
            return None
        return pattern, fit_pattern(own, settings)

    with ThreadPoolExecutor() as threads:
        models = [model for model in threads.map(fit, PATTERNS) if model is not None]
    return SpatialPrior(atlas, dict(models), classifier)


def sample_case(
    rng: np.random.Generator,
    case: SpatialCase,
    atlas: LesionAtlas,
    classifier: TissueClassifier | None,
    *,
    controls: int,
) -> dict[Pattern, CaseSample]:
    """Compute the features of a case's lesion voxels and controls for each pattern it can show.

    The atlas among the features leaves out the case's own lesions.
    """
    inputs, spacing = case.inputs, case.inputs.spacing
    others = atlas.without(case.outcome).densities
    brain = brain_support(inputs, case.outcome.shape)
    history = history_of(inputs)
    older = np.zeros_like(case.outcome) if history is None else history.older
    drawn = draw_controls(rng, brain, others[0], older, number=controls, spacing=spacing)
    lesions = np.flatnonzero(case.outcome)
    at = np.concatenate([lesions, drawn.at])
    features = VoxelFeatures(others, at, classifier)
    sampled: dict[Pattern, CaseSample] = {}
    for pattern in PATTERNS:
        used = reduced(inputs, pattern)
        if used is None:
            continue
        inside = features.support(used).ravel()[at]
        if not inside[: len(lesions)].any():
            continue
        matrix = features.matrix(used)
        hit, kept = inside[: len(lesions)], inside[len(lesions) :]
        sampled[pattern] = CaseSample(
            int(hit.sum()),
            matrix[:, : len(lesions)][:, hit].sum(axis=1, dtype=np.float64),
            matrix[:, len(lesions) :][:, kept],
            drawn.log_weight[kept],
        )
    return sampled


def fit_pattern(cases: Sequence[CaseSample], settings: SpatialFitSettings) -> LinearModel:
    """Fit the weights of one pattern of presence."""
    sizes = [len(case.log_weight) for case in cases]
    controls = Controls(
        np.concatenate([case.controls for case in cases], axis=1),
        np.concatenate([case.log_weight for case in cases]),
        np.concatenate([[0], np.cumsum(sizes)[:-1]]),
    )
    lesions = np.array([case.lesions for case in cases])
    voxels = np.array([case.voxels for case in cases])
    return fit_conditional_logit(
        controls, lesions, voxels, penalty=settings.penalty, iterations=settings.iterations
    )
