"""Scores of small ensembles are unbiased: on average they are those of endlessly many samples.

The samples come from a known distribution: a lesion load class by its probability, and one count
and one mask for each class. So every score has an exact value.
"""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from lesioncast.diffusion.lesion_load import sample_load_class
from lesioncast.evaluation.analysis.spatial import voxel_reliability
from lesioncast.evaluation.metrics.mask_comparison import (
    MaskComparison,
    ObservedMask,
    compare_masks,
    jaccard_distances,
)
from lesioncast.evaluation.metrics.scores import crps
from lesioncast.forecasting.sampling import SeedScheme, independent_seeds, sample_seeds

CHANCE = np.array([0.55, 0.25, 0.15, 0.05])
COUNT = np.array([0.0, 1.0, 3.0, 9.0])
SPACING = (3.0, 3.0, 3.0)
SUBJECTS, SAMPLES = 1500, 3


def mask_of(load: int) -> np.ndarray:
    """Return a mask [1, 2, 8] with twice as many voxels as the class's number."""
    mask = np.zeros((1, 2, 8), bool)
    mask[0, :, : 2 * load] = True
    return mask


MASKS = np.stack([mask_of(load) for load in range(len(CHANCE))])
OBSERVED = MASKS[1]


@cache
def drawn_classes(scheme: SeedScheme) -> np.ndarray:
    """Return the class of each sample of each subject, [subject, sample]."""
    logits = torch.from_numpy(np.log(CHANCE))
    return np.array(
        [
            [sample_load_class(logits, seed) for seed in scheme(0, f"sub-{subject}", SAMPLES)]
            for subject in range(SUBJECTS)
        ]
    )


@cache
def compared(scheme: SeedScheme) -> list[MaskComparison]:
    """Return the comparison of each subject's masks with the observed one."""
    observed = ObservedMask(OBSERVED)
    return [compare_masks(MASKS[row], observed, SPACING) for row in drawn_classes(scheme)]


def crps_of(scheme: SeedScheme) -> np.ndarray:
    return crps(np.full(SUBJECTS, 2.0), COUNT[drawn_classes(scheme)])


def energy_of(scheme: SeedScheme) -> np.ndarray:
    return np.array([one.energy for one in compared(scheme)])


def diversity_of(scheme: SeedScheme) -> np.ndarray:
    return np.array([one.diversity for one in compared(scheme)])


def voxel_brier_of(scheme: SeedScheme) -> np.ndarray:
    weights = np.ones((1, 1))
    return np.array([voxel_reliability([one], weights).brier.value for one in compared(scheme)])


def exact_crps() -> float:
    pairs = np.abs(COUNT[:, None] - COUNT[None, :])
    return float(CHANCE @ np.abs(COUNT - 2) - CHANCE @ pairs @ CHANCE / 2)


def exact_diversity() -> float:
    return float(CHANCE @ jaccard_distances(MASKS) @ CHANCE)


def exact_energy() -> float:
    return float(2 * CHANCE @ jaccard_distances(MASKS)[1] - exact_diversity())


def exact_voxel_brier() -> float:
    return float(np.mean((np.tensordot(CHANCE, MASKS, 1) - OBSERVED) ** 2))


SCORES = [
    (crps_of, exact_crps),
    (energy_of, exact_energy),
    (diversity_of, exact_diversity),
    (voxel_brier_of, exact_voxel_brier),
]


def distance_in_errors(values: np.ndarray, exact: float) -> float:
    """Return how many standard errors the mean of the values is away from the exact score."""
    return float(abs(values.mean() - exact) / (values.std(ddof=1) / np.sqrt(len(values))))


@pytest.mark.parametrize(("score", "exact"), SCORES)
def test_independent_samples_have_the_exact_score_on_average(score, exact) -> None:
    assert distance_in_errors(score(independent_seeds), exact()) < 3.5


@pytest.mark.parametrize(("score", "exact"), SCORES)
def test_evenly_spread_samples_would_be_scored_wrongly(score, exact) -> None:
    # That is why an evaluation does not take the seeds of forecasts.
    assert distance_in_errors(score(sample_seeds), exact()) > 10


def test_independent_seeds_depend_on_run_subject_and_position_alone() -> None:
    assert independent_seeds(3, "sub-1", 32)[:16] == independent_seeds(3, "sub-1", 16)
    seeds = [independent_seeds(run, name, 64) for run in (3, 4) for name in ("sub-1", "sub-2")]
    seeds.append(sample_seeds(3, "sub-1", 64))
    assert len(set().union(*seeds)) == 5 * 64
    assert all(0 <= seed < 2**63 for seed in independent_seeds(0, "sub-1", 1000))


def test_independent_seeds_draw_independent_lesion_loads() -> None:
    """With equally likely classes, the class is the position of the seed's quantile."""
    logits = torch.zeros(1000)
    classes = np.array(
        [sample_load_class(logits, seed) for seed in independent_seeds(0, "sub-1", 4000)]
    )
    quantile = (classes + 0.5) / 1000
    assert kstest(quantile, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(quantile[:-1], quantile[1:])[0, 1]) < 3 / np.sqrt(4000)
