"""Sampled against observed masks: detection worked by hand, distances equal to SciPy's."""

import numpy as np
import pytest
from scipy.spatial.distance import jaccard
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
)

from lesioncast.evaluation.analysis.regional import binary_scores
from lesioncast.evaluation.analysis.spatial import (
    f1_of_samples,
    spatial_agreement,
    voxel_reliability,
)
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, bootstrap_weights
from lesioncast.evaluation.metrics.detection import Detection, match_lesions
from lesioncast.evaluation.metrics.mask_comparison import (
    ObservedMask,
    compare_masks,
    jaccard_distances,
)
from lesioncast.imaging.regions import lesions_in_regions

MM = (3.0, 1.0, 1.0)
SHAPE = (2, 12, 40)
BOOTSTRAP = Bootstrap(100, 0)


def boxes(*places: tuple[int, int]) -> np.ndarray:
    """Return a mask with boxes of 10 rows, from column `first` up to but without `last`."""
    mask = np.zeros(SHAPE, bool)
    for first, last in places:
        mask[0, 1:11, first:last] = True
    return mask


def lesion_counts(drawn: np.ndarray, observed: np.ndarray) -> tuple[int, int, int, int]:
    seen = match_lesions(drawn, observed, MM)
    return seen.observed, seen.detected, seen.predicted, seen.correct


def test_detection_needs_more_than_a_tenth_covered() -> None:
    observed = boxes((10, 20))
    assert lesion_counts(boxes((9, 11)), observed) == (1, 0, 1, 0)  # 10 of 100 voxels
    assert lesion_counts(boxes((9, 12)), observed) == (1, 1, 1, 0)  # 20 of 100: 80 % lies outside


def test_a_predicted_lesion_mostly_outside_detects_nothing() -> None:
    # 20 of 60 voxels inside: 67 % outside is accepted, 75 % is not (the limit is 70 %).
    observed = boxes((10, 14))
    assert lesion_counts(boxes((12, 18)), observed)[1] == 1
    assert lesion_counts(boxes((12, 20)), observed)[1] == 0


def test_overlaps_beyond_two_thirds_of_the_cover_are_ignored() -> None:
    # 30 voxels of a good lesion make up 75 % of 40: the 10 of a large one do not count.
    observed = boxes((10, 20))
    assert lesion_counts(boxes((10, 13), (19, 30)), observed)[1] == 1
    assert lesion_counts(boxes((10, 11), (18, 30)), observed)[1] == 0


def test_one_predicted_lesion_may_detect_two() -> None:
    assert lesion_counts(boxes((4, 14)), boxes((4, 8), (10, 14))) == (2, 2, 1, 1)


def test_f1_combines_lesion_sensitivity_and_precision() -> None:
    # One of two detected, one of three correct: 2 (1/3) (1/2) / (1/3 + 1/2) = 2/5.
    seen = match_lesions(boxes((2, 6), (20, 22), (30, 32)), boxes((2, 6), (10, 14)), MM)
    assert seen.f1 == pytest.approx(0.4)


def test_without_an_observed_lesion_f1_is_undefined_and_the_volume_is_reported() -> None:
    seen = match_lesions(boxes((2, 4)), boxes(), MM)
    assert seen == Detection(observed=0, detected=0, predicted=1, correct=0, predicted_mm3=60.0)
    assert seen.f1 is None
    assert match_lesions(boxes(), boxes((2, 4)), MM).f1 == 0


def test_a_lesion_of_three_cubic_millimetres_is_not_counted() -> None:
    speck = np.zeros(SHAPE, bool)
    speck[0, 0, 0] = True
    assert lesion_counts(speck, speck) == (0, 0, 0, 0)
    assert match_lesions(speck, speck, (3.0, 1.0, 1.01)).f1 == 1


def test_distances_are_one_minus_the_jaccard_index() -> None:
    masks = np.random.default_rng(0).random((6, *SHAPE)) < 0.2
    masks[4:] = False
    mine = jaccard_distances(masks)
    flat = masks.reshape(6, -1)
    theirs = [[jaccard(a, b) for b in flat] for a in flat]
    assert mine == pytest.approx(np.array(theirs))
    assert mine[4, 5] == 0  # two empty masks agree


def test_an_oracle_has_energy_distance_0_and_detects_every_lesion() -> None:
    mask = boxes((3, 6), (20, 24))
    seen = compare_masks(np.stack([mask] * 5), ObservedMask(mask), MM)
    assert (seen.energy, seen.diversity, f1_of_samples(seen), seen.majority.f1) == (0, 0, 1, 1)
    assert seen.regions is None


def test_the_energy_distance_by_hand() -> None:
    # Samples: the truth, and an empty mask. Their distances to the truth are 0 and 1, that between
    # them is 1: 2 (1/2) - 1 = 0.
    mask = boxes((3, 6))
    seen = compare_masks(np.stack([mask, boxes()]), ObservedMask(mask), MM)
    assert (seen.distance, seen.diversity, seen.energy) == (0.5, 1.0, 0.0)
    assert compare_masks(np.stack([boxes()] * 2), ObservedMask(mask), MM).energy == 2


def test_the_energy_distance_is_least_for_the_true_distribution() -> None:
    rng = np.random.default_rng(1)

    def masks(rate: float, number: int) -> np.ndarray:
        here = rng.random((number, 3)) < rate
        return np.stack(
            [boxes(*[(10 * c, 10 * c + 5) for c in range(3) if row[c]]) for row in here]
        )

    means = {
        rate: np.mean(
            [
                compare_masks(masks(rate, 4), ObservedMask(truth), MM).energy
                for truth in masks(0.4, 150)
            ]
        )
        for rate in (0.05, 0.4, 0.95)
    }
    assert min(means, key=means.__getitem__) == 0.4


def test_voxels_are_counted_by_the_number_of_samples_that_contain_them() -> None:
    # A calibrated voxel forecast: half of the voxels in 1 of 2 samples are lesion.
    truth = boxes((0, 4))
    seen = compare_masks(np.stack([boxes((0, 2)), boxes((0, 2), (4, 6))]), ObservedMask(truth), MM)
    assert seen.voxels.tolist() == [2 * 12 * 40 - 40, 20, 20]
    assert seen.lesion_voxels.tolist() == [20, 0, 20]
    agreement = voxel_reliability([seen, seen], np.ones((3, 2)))
    assert [row.lesion_share.value for row in agreement.rows] == pytest.approx([20 / 920, 0, 1])
    # Of the 40 voxels that one of two samples holds, an endless ensemble might know all.
    assert agreement.brier.value == pytest.approx(20 / 960)


def test_the_voxel_brier_score_does_not_depend_on_the_number_of_samples() -> None:
    rng = np.random.default_rng(5)
    chance = rng.beta(0.5, 2, SHAPE)

    def mean_score(samples: int) -> float:
        drawn = [
            compare_masks(
                rng.random((samples, *SHAPE)) < chance, ObservedMask(rng.random(SHAPE) < chance), MM
            )
            for _ in range(60)
        ]
        return float(voxel_reliability(drawn, np.ones((1, 60))).brier.value)

    exact = np.mean(chance * (1 - chance))
    assert mean_score(2) == pytest.approx(exact, rel=0.03)
    assert mean_score(12) == pytest.approx(exact, rel=0.03)


def test_reliability_has_ten_rows_and_one_for_probability_0() -> None:
    masks = np.random.default_rng(0).random((40, *SHAPE)) < 0.3
    agreement = voxel_reliability(
        [compare_masks(masks, ObservedMask(boxes((0, 4))), MM)], np.ones((3, 1))
    )
    assert len(agreement.rows) <= 11
    assert sum(row.voxels for row in agreement.rows) == 960


def test_cases_without_lesions_are_reported_apart() -> None:
    full, empty = boxes((3, 6)), boxes()
    seen = [
        compare_masks(np.stack([full, full]), ObservedMask(full), MM),
        compare_masks(np.stack([full, empty]), ObservedMask(empty), MM),
    ]
    agreement = spatial_agreement(seen, iter([("pooled", np.ones(2, bool))]), bootstrap=BOOTSTRAP)
    group = agreement.groups["pooled"]
    assert (group.cases, group.cases_with_lesions, group.lesion_free.cases) == (2, 1, 1)
    assert group.f1_sample.value == 1
    assert group.lesion_free.lesions_per_sample.value == 0.5
    assert group.lesion_free.mm3_per_sample.value == 45.0
    assert group.lesion_free.empty_sample_share.value == 0.5
    assert group.energy_distance_of_empty.value == 1.0


def test_a_region_is_touched_by_any_lesion_voxel() -> None:
    labels = np.full(SHAPE, 41, np.int16)
    labels[:, :, 20:] = 3
    masks = np.stack([boxes((2, 4)), boxes((19, 21)), boxes((30, 31)), boxes()])
    assert lesions_in_regions(masks, labels).tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]


def test_regional_scores_equal_scikit_learn_on_repeated_cases() -> None:
    rng = np.random.default_rng(3)
    true, predicted = rng.random(60) < 0.4, rng.random(60) < 0.5
    weights = bootstrap_weights(60, draws=10, seed=0)
    mine = binary_scores(true, predicted[None], weights)
    theirs = {
        "balanced_accuracy": balanced_accuracy_score, "precision": precision_score,
        "recall": recall_score, "f1": f1_score,
    }  # fmt: skip
    for name, score in theirs.items():
        drawn = [np.repeat(np.arange(60), row.astype(int)) for row in weights]
        assert getattr(mine, name) == pytest.approx(
            [score(true[rows], predicted[rows]) for rows in drawn]
        )


def test_a_regional_oracle_is_perfect_and_a_coin_is_chance() -> None:
    true = np.random.default_rng(4).random(400) < 0.3
    ones = np.ones((1, 400))
    oracle = binary_scores(true, true[None], ones)
    assert [scores[0] for scores in vars(oracle).values()] == [1, 1, 1, 1]
    coins = np.random.default_rng(5).random((50, 400)) < 0.3
    assert binary_scores(true, coins, ones).balanced_accuracy[0] == pytest.approx(0.5, abs=0.02)
    no_positive = binary_scores(true, np.zeros((1, 400), bool), ones)
    assert np.isnan(no_positive.precision[0])
    assert no_positive.recall[0] == 0
