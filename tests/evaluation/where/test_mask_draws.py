"""Masks drawn from a map without networks: amounts, shapes and places are those that were asked."""

import numpy as np
import pytest

from lesioncast.evaluation.where.mask_draws import (
    DONORS,
    StoredLesions,
    draw_voxels,
    lesion_shapes,
    place_lesions,
)
from lesioncast.imaging.lesions import components

SHAPE = (6, 12, 14)


def map_with_halves(*, left: float) -> np.ndarray:
    """Return a density with a share of `left` in the left half, even within the halves."""
    density = np.ones(SHAPE)
    density[..., :7] *= left / (1 - left)
    return density / density.sum()


def bar(length: int, *, at: tuple[int, int, int] = (2, 5, 1)) -> np.ndarray:
    """Return a mask with one lesion of `length` voxels along a row."""
    mask = np.zeros(SHAPE, bool)
    mask[at[0], at[1], at[2] : at[2] + length] = True
    return mask


def test_independent_voxels_have_the_number_and_the_place_that_the_map_gives() -> None:
    rng, density = np.random.default_rng(0), map_with_halves(left=0.8)
    masks = np.stack([draw_voxels(rng, density, 12) for _ in range(400)])
    assert masks.sum() / len(masks) == pytest.approx(12, rel=0.03)
    assert masks[..., :7].sum() / masks.sum() == pytest.approx(0.8, abs=0.02)


def test_a_mask_of_independent_voxels_is_never_empty() -> None:
    rng = np.random.default_rng(0)
    sizes = [draw_voxels(rng, map_with_halves(left=0.5), 0.2).sum() for _ in range(50)]
    assert min(sizes) == 1


def test_a_lesion_keeps_its_shape_wherever_it_is_placed() -> None:
    (shape,) = lesion_shapes(bar(3))
    assert sorted(shape.tolist()) == [[0, 0, -1], [0, 0, 0], [0, 0, 1]]
    mask = place_lesions(np.random.default_rng(1), map_with_halves(left=0.5), [shape])
    assert sorted(lesion_shapes(mask)[0].tolist()) == sorted(shape.tolist())


def test_lesions_are_placed_by_the_map_and_inside_it() -> None:
    density = map_with_halves(left=0.9)
    density[..., -2:] = 0  # outside the brain
    density /= density.sum()
    (shape,) = lesion_shapes(bar(3))
    rng = np.random.default_rng(0)
    masks = np.stack([place_lesions(rng, density, [shape]) for _ in range(300)])
    assert not masks[..., -2:].any()
    assert 0.84 < masks[..., :7].sum() / masks.sum() < 0.96


def test_placed_lesions_do_not_touch_and_one_without_a_place_is_left_out() -> None:
    shapes = lesion_shapes(bar(3)) * 6
    for seed in range(20):
        mask = place_lesions(np.random.default_rng(seed), map_with_halves(left=0.5), shapes)
        assert components(mask)[1] == 6
    large = lesion_shapes(np.ones((*SHAPE[:2], 8), bool))
    mask = place_lesions(np.random.default_rng(0), map_with_halves(left=0.5), large * 2)
    assert components(mask)[1] == 1


def test_stored_lesions_are_those_of_a_case_with_about_as_many_voxels() -> None:
    stored = StoredLesions.of_masks([np.zeros(SHAPE, bool), *(bar(n) for n in range(1, 13))])
    assert len(stored.voxels) == 12
    rng = np.random.default_rng(0)
    drawn = {sum(len(shape) for shape in stored.draw(rng, 9)) for _ in range(200)}
    assert len(drawn) == DONORS
    assert max(abs(np.log(n / 9)) for n in drawn) <= np.log(9 / 5)
