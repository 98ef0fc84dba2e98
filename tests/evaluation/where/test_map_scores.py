"""Scores of maps against closed forms, scikit-learn, and predictors whose score is known."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lesioncast.evaluation.where.density import EVEN_SHARE, density_in
from lesioncast.evaluation.where.map_scores import RANK_EDGES, MapScore, score_map

VOXELS = 4000
RNG = np.random.default_rng(3)


def skewed(seed: int, voxels: int = VOXELS) -> np.ndarray:
    """Return a density that differs between voxels by a factor of about a hundred."""
    weights = np.exp(1.5 * np.random.default_rng(seed).standard_normal(voxels))
    return weights / weights.sum()


EVEN = np.full(VOXELS, 1 / VOXELS)
TRUTH, OTHER = skewed(1), skewed(2)


def draw(density: np.ndarray, seed: int, number: int = 30) -> np.ndarray:
    """Draw lesions of one voxel each; a voxel that is drawn twice is one lesion."""
    places = np.random.default_rng(seed).choice(len(density), number, p=density)
    lesions = np.zeros(len(density), np.int32)
    lesions[places] = np.arange(1, number + 1)
    return lesions


def kullback_leibler(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ np.log(one / other))


def scores(density: np.ndarray, cases: int = 400, atlas: np.ndarray = EVEN) -> list[MapScore]:
    """Score a map of cases whose lesions follow TRUTH, with one lesion voxel a case."""
    return [score_map(density, atlas, draw(TRUTH, seed, number=1)) for seed in range(cases)]


@pytest.mark.parametrize("atlas", [EVEN, OTHER])
def test_the_true_density_gains_the_divergence_from_the_atlas(atlas: np.ndarray) -> None:
    gains = np.array([score.nats_case for score in scores(TRUTH, atlas=atlas)])
    error = gains.std() / np.sqrt(len(gains))
    assert gains.mean() == pytest.approx(kullback_leibler(TRUTH, atlas), abs=3 * error)
    assert error < 0.1 * gains.mean()


def test_no_map_gains_more_than_the_true_density() -> None:
    sharper, flatter = TRUTH**1.5 / (TRUTH**1.5).sum(), TRUTH**0.5 / (TRUTH**0.5).sum()
    best = np.array([score.nats_case for score in scores(TRUTH)])
    for density in (sharper, flatter, OTHER, EVEN):
        lost = best - np.array([score.nats_case for score in scores(density)])
        assert lost.mean() > 3 * lost.std() / np.sqrt(len(lost))


def test_the_reference_scored_against_itself_gains_nothing() -> None:
    for density in (EVEN, TRUTH):
        score = score_map(density, density, draw(TRUTH, 5))
        assert score.nats_case == 0
        assert score.nats_lesion == 0


def test_a_constant_map_is_chance_by_every_rank_score() -> None:
    score = score_map(EVEN, TRUTH, draw(TRUTH, 5))
    assert score.auc == pytest.approx(0.5)
    share = np.diff(RANK_EDGES)
    assert score.observed / score.observed.sum() == pytest.approx(share)
    assert score.forecast == pytest.approx(share)


def test_a_map_of_something_else_is_chance_by_auc_and_loses_nats() -> None:
    shuffled = scores(OTHER)
    auc = np.array([score.auc for score in shuffled])
    assert auc.mean() == pytest.approx(0.5, abs=3 * auc.std() / np.sqrt(len(auc)))
    gain = np.mean([score.nats_case for score in shuffled])
    assert gain < -0.5


def test_an_oracle_ranks_every_lesion_voxel_first() -> None:
    lesions = draw(TRUTH, 5)
    oracle = density_in(np.ones(VOXELS, bool), (lesions > 0).astype(float))
    score = score_map(oracle, EVEN, lesions)
    assert score.auc == 1
    assert score.observed[-1] == (lesions > 0).sum()
    voxels = (lesions > 0).sum()
    each = np.log((1 - EVEN_SHARE) / voxels * VOXELS + EVEN_SHARE)
    assert score.nats_case == pytest.approx(voxels * each)


def test_auc_is_that_of_scikit_learn_with_and_without_ties() -> None:
    lesions = draw(TRUTH, 5)
    for density in (TRUTH, np.round(TRUTH, 4) + 1e-9):
        expected = roc_auc_score(lesions > 0, density)
        assert score_map(density, EVEN, lesions).auc == pytest.approx(expected)


def test_each_lesion_counts_once_however_large() -> None:
    density = np.full(10, 0.05)
    density[:5] = 0.15
    lesions = np.array([1, 1, 1, 0, 0, 2, 0, 0, 0, 0], np.int32)
    score = score_map(density, np.full(10, 0.1), lesions)
    assert score.nats_case == pytest.approx(3 * np.log(1.5) + np.log(0.5))
    assert score.nats_lesion == pytest.approx((np.log(1.5) + np.log(0.5)) / 2)


def test_lesions_outside_the_brain_leave_a_gap_in_the_numbers() -> None:
    density = np.array([0.4, 0.2, 0.2, 0.2])
    lesions = np.array([3, 0, 0, 0], np.int32)
    assert score_map(density, np.full(4, 0.25), lesions).nats_lesion == pytest.approx(np.log(1.6))


def test_a_map_of_zeros_is_the_even_brain_and_a_zero_loses_a_bounded_gain() -> None:
    brain = np.ones((2, 5, 10), bool)
    assert density_in(brain, np.zeros(brain.shape)) == pytest.approx(np.full(100, 0.01))
    volume = np.zeros(brain.shape)
    volume[0, 0, 0] = 7
    density = density_in(brain, volume)
    assert density.sum() == pytest.approx(1)
    assert density.min() == pytest.approx(EVEN_SHARE / 100)
