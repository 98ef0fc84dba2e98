"""Distances and shifts in millimetres, against the transforms of SciPy."""

import numpy as np
import pytest
from scipy import ndimage

from lesioncast.priors.spatial.distance import distance_to
from lesioncast.priors.spatial.smoothing import shift
from tests.priors.spatial.made_up_cases import SPACING


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (3.0, 1.0, 1.5)])
@pytest.mark.parametrize("furthest", [2.0, 13.0, 400.0])
def test_the_distance_is_that_of_a_full_transform_up_to_the_furthest(
    spacing: tuple[float, float, float], furthest: float
) -> None:
    mask = np.random.default_rng(0).random((6, 20, 21)) < 0.01
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing)
    found = distance_to(mask, spacing, furthest=furthest)
    np.testing.assert_allclose(found, np.minimum(expected, furthest), rtol=1e-5)
    assert (distance_to(np.zeros_like(mask), spacing, furthest=furthest) == furthest).all()


@pytest.mark.parametrize("offset", [(3.0, 0.0, 0.0), (0.0, 4.5, -3.0), (0.0, -1.0, 100.0)])
def test_a_shift_reads_the_volume_at_an_offset(offset: tuple[float, float, float]) -> None:
    volume = np.random.default_rng(0).random((4, 9, 8)).astype(np.float32)
    steps = [-part / step for part, step in zip(offset, SPACING, strict=True)]
    expected = ndimage.shift(volume, steps, order=1, mode="nearest")
    np.testing.assert_allclose(shift(volume, SPACING, offset), expected, atol=1e-5)
