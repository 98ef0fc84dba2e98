"""Tissue and air: the same head gets the same values whatever lies around it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from storage import Store
from storage.layout import head_mask
from storage.preprocess.tissue import tissue_mask
from storage.settings import StoreSettings
from tests.storage.convert.conversion import converted
from tests.support import bids

Array = bids.Array
SETTINGS = StoreSettings((8, 36, 32), (3.0, 2.0, 2.0), resample=False)
SHAPE = (12, 40, 36)
AXES = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
RADIUS = np.sqrt((AXES[0] / 0.95) ** 2 + (AXES[1] / 0.8) ** 2 + (AXES[2] / 0.7) ** 2)
AIR = RADIUS >= 1
BRAIN = RADIUS < 0.8


def image(session: int) -> Array:
    """Return a brain in a bright scalp, with air of zeros."""
    tissue = np.where(BRAIN, 450 + 250 * np.sin(3 * AXES[1]) * np.cos(4 * AXES[2]), 700)
    noise = np.random.default_rng(session).normal(0, 10, SHAPE)
    return np.where(AIR, 0, np.rint(tissue + noise))


def whole_numbers(rng: np.random.Generator) -> Array:
    return rng.integers(1, 20, SHAPE)


def zeros_and_ones(rng: np.random.Generator) -> Array:
    return rng.integers(0, 2, SHAPE)


def rician(rng: np.random.Generator) -> Array:
    return np.rint(np.hypot(*rng.normal(0, 15, (2, *SHAPE))))


def around_zero(rng: np.random.Generator) -> Array:
    return np.rint(rng.normal(0, 8, SHAPE))


def few_voxels(rng: np.random.Generator) -> Array:
    return np.where(rng.random(SHAPE) < 0.05, rng.integers(1, 20, SHAPE), 0)


def within_padding(rng: np.random.Generator) -> Array:
    padded = np.zeros(SHAPE)
    padded[:, 2:-2, 2:-2] = rng.integers(1, 20, SHAPE)[:, 2:-2, 2:-2]
    return padded


def pedestal(rng: np.random.Generator) -> Array:
    return np.full(SHAPE, 40)


AIRS = (
    whole_numbers, zeros_and_ones, rician, around_zero, few_voxels, within_padding, pedestal,
)  # fmt: skip


def write_head(
    root: Path, name: str, air: Callable[[np.random.Generator], Array] | None, *sessions: str
) -> None:
    """Write a subject whose air is replaced by `air` at these sessions."""
    for k, session in enumerate(bids.SESSIONS):
        data = image(k)
        if air is not None and session in sessions:
            data = np.where(AIR, air(np.random.default_rng(10 + k)), data)
        path = bids.path_of(root, name, session, "flair")
        bids.write_volume(path, data.astype(np.int16), bids.Geometry(SHAPE, tilt=0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Convert one head with zeros in its air, then with each other air at one or all sessions."""
    root = tmp_path_factory.mktemp("air")
    names = ["sub-zero", *(f"sub-{n}" for n in range(len(AIRS))), "sub-one"]
    bids.write_participants(root / "bids", dict.fromkeys(names, "placebo"))
    write_head(root / "bids", "sub-zero", None)
    write_head(root / "bids", "sub-one", whole_numbers, "w048")
    for n, air in enumerate(AIRS):
        write_head(root / "bids", f"sub-{n}", air, *bids.SESSIONS)
    return converted(root / "bids", root / "store.zarr", settings=SETTINGS)[0]


def values_in_head(store: Store, name: str) -> Array:
    """Return the stored FLAIR of the head's voxels, [session, voxel]."""
    (case,) = (case for case in store.cases if case.subject == name)
    s, h, w = (int(offset) for offset in case.grid.offset)
    inside = ~AIR[s : s + 8, h : h + 36, w : w + 32]
    return np.asarray(store.read(case.index).flair[:, inside].astype(np.float32))


@pytest.mark.parametrize(
    "name", [*(pytest.param(f"sub-{n}", id=air.__name__) for n, air in enumerate(AIRS)), "sub-one"]
)
def test_what_the_air_holds_does_not_shift_the_head(store: Store, name: str) -> None:
    shift = np.abs(values_in_head(store, name) - values_in_head(store, "sub-zero"))
    assert shift.max() < 0.02


def test_air_is_background_in_the_store_whatever_it_held(store: Store) -> None:
    shares = {case.subject: head_mask(store.read(case.index).flair).mean() for case in store.cases}
    assert shares.values() == pytest.approx([shares["sub-zero"]] * len(shares), rel=0.01)


def test_dark_surface_is_tissue_where_the_air_is_constant() -> None:
    inner = ndimage.binary_erosion(BRAIN, np.ones((1, 3, 3), bool))
    with_fluid = np.where(inner, image(0), np.where(BRAIN, 30, 0))
    np.testing.assert_array_equal(tissue_mask(with_fluid), BRAIN)


def test_dark_voxels_that_noise_reaches_are_tissue_if_tissue_encloses_them() -> None:
    ventricle = (np.abs(AXES[1]) < 0.2) & (np.abs(AXES[2]) < 0.2)
    noisy = np.where(AIR, whole_numbers(np.random.default_rng(0)), np.where(ventricle, 4, image(0)))
    np.testing.assert_array_equal(tissue_mask(noisy), ~AIR)


def test_everything_is_tissue_in_an_image_without_air() -> None:
    inside = image(0)[3:9, 12:28, 12:24]
    assert tissue_mask(inside).all()
