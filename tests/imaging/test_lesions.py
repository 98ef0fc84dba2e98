"""Lesions are 26-connected components; the opening element has a fixed size in millimetres."""

import numpy as np
import pytest

from lesioncast.imaging.lesions import (
    components,
    count_lesions,
    lesion_count,
    morphological_opening,
    opening_element,
)

MM1 = (3.0, 1.0, 1.0)
MM3 = (3.0, 3.0, 3.0)


def mask_of(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    """Return a mask that is True in the boxes."""
    mask = np.zeros((4, 20, 20), bool)
    for box in boxes:
        mask[box] = True
    return mask


def volumes_of(mask: np.ndarray) -> np.ndarray:
    """Return the volume in mm3 of each lesion, in the order of the labels."""
    labels, number = components(mask)
    return np.bincount(labels.ravel(), minlength=number + 1)[1:] * np.prod(MM1)


def test_voxels_that_share_only_a_corner_are_one_lesion() -> None:
    mask = mask_of()
    mask[1, 5, 5] = mask[2, 6, 6] = True
    assert lesion_count(mask, MM1) == 1


def test_voxels_one_apart_are_two_lesions() -> None:
    mask = mask_of()
    mask[1, 5, 5] = mask[1, 5, 7] = True
    assert lesion_count(mask, MM1) == 2


def test_an_empty_mask_has_no_lesion() -> None:
    assert lesion_count(mask_of(), MM1) == 0
    assert lesion_count(mask_of(), MM1, opening=True) == 0
    assert volumes_of(mask_of()).size == 0


@pytest.mark.parametrize(
    ("spacing", "element"),
    [
        ((3.0, 1.0, 1.0), (1, 5, 5)),  # the paper's
        ((3.0, 0.72, 0.72), (1, 7, 7)),
        ((3.0, 1.5, 1.5), (1, 3, 3)),
        ((3.0, 2.0, 2.0), (1, 3, 3)),
        ((3.0, 3.0, 3.0), (1, 1, 1)),
        ((3.0, 6.0, 6.0), (1, 1, 1)),
        ((3.0, 1.0, 3.0), (1, 5, 1)),
    ],
)
def test_the_opening_is_five_millimetres_in_odd_voxels_and_never_below_one(
    spacing: tuple[float, float, float], element: tuple[int, int, int]
) -> None:
    assert opening_element(spacing) == element


def test_the_opening_keeps_a_lesion_of_the_elements_size_and_removes_a_narrower_one() -> None:
    wide, narrow = np.s_[1:2, 2:7, 2:7], np.s_[2:3, 10:15, 10:14]
    mask = mask_of(wide, narrow)
    assert lesion_count(mask, MM1) == 2
    assert lesion_count(mask, MM1, opening=True) == 1
    assert np.array_equal(morphological_opening(mask, MM1), mask_of(wide))


def test_the_opening_does_nothing_if_a_voxel_is_as_large_as_the_element() -> None:
    mask = mask_of(np.s_[1:2, 2:3, 2:3])
    assert lesion_count(mask, MM3, opening=True) == 1


def test_volumes_are_in_cubic_millimetres() -> None:
    mask = mask_of(np.s_[0:1, 0:2, 0:2], np.s_[2:4, 10:11, 10:11])
    assert volumes_of(mask).tolist() == [12.0, 6.0]
    assert count_lesions(mask, MM1).volume == 18.0
