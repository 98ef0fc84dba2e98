"""The atlas without a case's own lesions, and rates of rings against a direct maximisation."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize

from lesioncast.evaluation.features.image_features import lesion_voxels
from lesioncast.evaluation.where.atlas import atlas_of, sum_of_masks
from lesioncast.evaluation.where.rings import (
    NUMBER_OF_RINGS,
    RingCounts,
    fit_ring_rates,
    older_lesions,
    ring_counts,
    ring_of_voxels,
)

SHAPE = (7, 20, 20)
SPACING = (3.0, 3.0, 3.0)


def images(older: np.ndarray, *, present: bool = True) -> SimpleNamespace:
    """Return a case whose brain is the whole slab, with T2 lesions at the current session."""
    masks = np.zeros((3, 3, *SHAPE), np.uint8)
    masks[1, 0] = older
    return SimpleNamespace(
        flair=np.zeros((3, *SHAPE), np.float16),
        masks=masks,
        parcellation=np.full(SHAPE, 2, np.int16),
        present=np.full((3, 4), present),
    )


def point(*at: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[at] = True
    return mask


def test_the_atlas_without_a_case_does_not_know_its_lesions() -> None:
    """A lone training case has an even atlas: its own lesion must not help it."""
    mask = point(3, 10, 4)
    voxels = lesion_voxels(mask)
    total = atlas_of(sum_of_masks([voxels], SHAPE), SPACING)
    counts = ring_counts(images(point(3, 2, 2)), voxels, total, SPACING)
    ring = ring_of_voxels(point(3, 2, 2), SPACING)
    even = np.bincount(ring.ravel(), minlength=NUMBER_OF_RINGS) / ring.size
    assert counts.atlas == pytest.approx(even, abs=1e-6)
    assert counts.observed.sum() == 1


def test_the_atlas_is_symmetric_and_keeps_the_number_of_lesions_away_from_the_edge() -> None:
    atlas = atlas_of(sum_of_masks([lesion_voxels(point(3, 10, 8))], SHAPE), (9.0,) * 3)
    assert atlas == pytest.approx(atlas[..., ::-1])
    assert atlas.sum() == pytest.approx(1, rel=1e-3)


def test_rings_are_distances_in_mm_between_centres_of_voxels() -> None:
    ring = ring_of_voxels(point(3, 10, 10), SPACING)
    assert ring[3, 10, 10] == 0
    assert ring[3, 10, 11] == 1  # 3 mm
    assert ring[3, 11, 11] == 3  # 4.2 mm
    assert ring[3, 10, 12] == 4  # 6 mm
    assert ring[3, 10, 19] == NUMBER_OF_RINGS - 1  # 27 mm


def test_missing_channels_and_no_lesions_give_one_ring() -> None:
    assert not older_lesions(images(point(1, 1, 1), present=False)).any()
    assert set(ring_of_voxels(np.zeros(SHAPE, bool), SPACING).ravel()) == {NUMBER_OF_RINGS - 1}


def test_rates_maximise_the_conditional_likelihood() -> None:
    rng = np.random.default_rng(0)
    true = np.exp(rng.normal(size=NUMBER_OF_RINGS))
    cases = []
    for _ in range(60):
        atlas = rng.dirichlet(np.ones(NUMBER_OF_RINGS))
        density = atlas * true / (atlas @ true)
        cases.append(RingCounts(atlas, rng.multinomial(400, density).astype(float)))

    def negative(log_rates: np.ndarray) -> float:
        rates = np.exp(log_rates)
        return -sum(
            case.observed @ np.log(case.atlas * rates / (case.atlas @ rates)) for case in cases
        )

    direct = np.exp(optimize.minimize(negative, np.zeros(NUMBER_OF_RINGS), method="BFGS").x)
    fitted = fit_ring_rates(cases)
    assert fitted / fitted[-1] == pytest.approx(direct / direct[-1], rel=0.02)
    assert fitted / fitted[-1] == pytest.approx(true / true[-1], rel=0.15)


def test_without_training_lesions_every_ring_is_the_atlas() -> None:
    assert fit_ring_rates([]).tolist() == [1.0] * NUMBER_OF_RINGS
