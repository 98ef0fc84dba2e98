"""Kernel score of masks: against smoothing on a grid, and for forecasts whose score is known."""

import numpy as np
import pytest
from scipy import ndimage

from lesioncast.evaluation.metrics.mask_comparison import jaccard_distances
from lesioncast.evaluation.where.kernel_score import (
    SMOOTHINGS_MM,
    kernel_scores,
    kernel_scores_of_empty,
    smoothed_products,
)

SPACING = (3.0, 1.5, 1.5)
SHAPE = (9, 30, 30)


def lesion(*at: int) -> np.ndarray:
    """Return a mask with one lesion of 2 x 2 x 2 voxels."""
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(place, place + 2) for place in at)] = True
    return mask


def test_distances_are_those_of_masks_smoothed_on_a_grid() -> None:
    masks = np.stack([lesion(3, 10, 10), lesion(4, 12, 15), lesion(3, 10, 10) | lesion(5, 20, 20)])
    padded = np.pad(masks, [(0, 0), (12, 12), (24, 24), (24, 24)]).astype(float)
    smoothing = 6.0
    widths = [0, *(smoothing / size for size in SPACING)]
    smooth = ndimage.gaussian_filter(padded, widths, truncate=6)
    products = np.einsum("ashw,bshw->ab", smooth, smooth)
    ours = smoothed_products(masks, SPACING, smoothing)
    assert ours / ours[0, 0] == pytest.approx(products / products[0, 0], rel=1e-3)


def test_the_observed_mask_itself_is_perfect_and_an_empty_forecast_has_score_one() -> None:
    observed = lesion(3, 10, 10)
    assert kernel_scores(np.stack([observed] * 3), observed, SPACING) == pytest.approx(
        np.zeros(3), abs=1e-3
    )
    empty = kernel_scores(np.zeros((3, *SHAPE), bool), observed, SPACING)
    assert empty == pytest.approx(kernel_scores_of_empty(observed, SPACING))
    assert (empty > 0).all()


def test_no_lesions_forecast_and_none_observed_is_perfect() -> None:
    nothing = np.zeros(SHAPE, bool)
    assert kernel_scores(np.stack([nothing] * 2), nothing, SPACING).tolist() == [0, 0, 0]
    assert kernel_scores_of_empty(nothing, SPACING).tolist() == [0, 0, 0]


def test_a_near_miss_scores_better_than_a_far_one_where_iou_is_the_same() -> None:
    observed, near, far = lesion(3, 10, 10), lesion(3, 10, 13), lesion(3, 25, 25)
    close, distant = (
        kernel_scores(np.stack([mask] * 2), observed, SPACING) for mask in (near, far)
    )
    assert (close < distant).all()
    assert jaccard_distances(np.stack([observed, near, far]))[0, 1:].tolist() == [1, 1]


def test_samples_of_the_law_score_best() -> None:
    """Outcomes lie in one of two places; a forecast may know both, one, none, or another."""
    rng = np.random.default_rng(1)
    places = (lesion(2, 5, 5), lesion(6, 20, 20), lesion(2, 5, 20))

    def draw(weights: tuple[float, float, float]) -> np.ndarray:
        return places[rng.choice(3, p=weights)]

    def mean_score(weights: tuple[float, float, float]) -> np.ndarray:
        rows = [
            kernel_scores(
                np.stack([draw(weights) for _ in range(4)]), draw((0.7, 0.3, 0.0)), SPACING
            )
            for _ in range(300)
        ]
        return np.mean(rows, axis=0)

    law = mean_score((0.7, 0.3, 0.0))
    for wrong in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        assert (mean_score(wrong) > law).all()
    assert len(law) == len(SMOOTHINGS_MM)


@pytest.mark.parametrize("members", [2, 3, 8])
def test_the_number_of_samples_does_not_change_the_mean_score(members: int) -> None:
    rng = np.random.default_rng(2)
    places = np.stack([lesion(2, 5, 5), lesion(6, 20, 20)])
    scores = [
        kernel_scores(places[rng.integers(2, size=members)], places[rng.integers(2)], SPACING)
        for _ in range(1500)
    ]
    # With two equal places at distance d: E d(X, y) - E d(X, X') / 2 = d / 2 - d / 4.
    products = smoothed_products(places, SPACING, SMOOTHINGS_MM[1])
    distance = np.sqrt(products[0, 0] + products[1, 1] - 2 * products[0, 1])
    assert np.mean(scores, axis=0)[1] == pytest.approx(distance / 4, rel=0.06)
