"""Move a volume from its file to the slab of a store, and back."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from storage.layout import StoreSpec
from storage.nifti.io import read_volume, write_nifti_atomic
from storage.preprocess.grid import SlabGrid, place_slab, to_slab, to_source_grid
from storage.preprocess.normalise import intensity_range, scale_flair
from storage.settings import StoreSettings
from storage.store.case_table import decode_table, encode_table
from storage.trial.dataset import SourceFile
from tests.support import bids
from tests.support.store import table_of

SLAB = (5, 12, 16)  # cropped in s and h, padded in w
SAME = StoreSettings(SLAB, (3.0, 2.0, 2.0), resample=False)
FINER = StoreSettings((15, 36, 28), (1.5, 1.0, 1.0), resample=True)
AXES = ["".join(axes) for axes in itertools.product("LR", "PA", "IS")] + ["PSR", "SAL", "IRP"]


def written(
    folder: Path, canonical: bids.Array, geometry: bids.Geometry, *, settings: StoreSettings = SAME
) -> tuple[Path, SlabGrid]:
    path = folder / "flair.nii.gz"
    bids.write_volume(path, canonical, geometry)
    volume = read_volume(SourceFile("sub-01", "w048", "flair", path))
    np.testing.assert_array_equal(volume.data, canonical)
    return path, place_slab(volume, settings=settings, brain=None)


@pytest.mark.parametrize("axes", AXES)
def test_mask_returns_to_its_voxels_in_any_orientation(tmp_path: Path, axes: str) -> None:
    geometry = bids.Geometry(axes=axes)
    mask = bids.head(geometry.shape, 1) > 500
    path, grid = written(tmp_path, mask.astype(np.uint8), geometry)
    slab = to_slab(mask, grid, order=0)
    assert grid.is_crop
    assert slab.shape == SLAB

    back = to_source_grid(slab, grid, order=0)
    source = nib.load(path)
    in_slab = to_source_grid(np.ones(SLAB, bool), grid, order=0)
    np.testing.assert_array_equal(back.dataobj, source.dataobj * np.asarray(in_slab.dataobj))
    assert np.count_nonzero(in_slab.dataobj) == 5 * 12 * 14
    np.testing.assert_array_equal(back.affine, source.affine)


def test_volume_on_the_source_grid_keeps_affine_codes_and_units(tmp_path: Path) -> None:
    path, grid = written(tmp_path, bids.head((9, 18, 14), 0), bids.Geometry())
    out = tmp_path / "made" / "forecast.nii.gz"
    write_nifti_atomic(to_source_grid(np.zeros(SLAB), grid, order=1), out)
    source, forecast = nib.load(path), nib.load(out)
    np.testing.assert_array_equal(forecast.affine, source.affine)
    np.testing.assert_allclose(forecast.get_qform(), source.get_qform(), atol=1e-5)
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert forecast.header[field] == source.header[field]
    assert [p.name for p in out.parent.iterdir()] == ["forecast.nii.gz"]


def test_slab_affine_and_source_affine_agree_in_millimetres(tmp_path: Path) -> None:
    canonical = np.zeros((9, 18, 14), np.int16)
    canonical[4, 9, 3] = 1
    for settings in (SAME, FINER):
        path, grid = written(tmp_path, canonical, bids.Geometry(axes="PSR"), settings=settings)
        s, h, w = np.argwhere(to_slab(canonical, grid, order=0)).mean(axis=0)
        i, j, k = np.argwhere(np.asarray(nib.load(path).dataobj))[0]
        here = np.array(grid.slab_affine) @ (w, h, s, 1)
        there = nib.load(path).affine @ (i, j, k, 1)
        np.testing.assert_allclose(here, there, atol=0.5)


def test_slab_takes_the_central_slices(tmp_path: Path) -> None:
    canonical = bids.head((9, 18, 14), 2)
    _, grid = written(tmp_path, canonical, bids.Geometry())
    slab = to_slab(canonical, grid, order=0, fill=-7)
    assert grid.offset[0] == 2
    assert grid.offset[2] == -1
    np.testing.assert_array_equal(slab[:, :, 1:15], canonical[2:7, int(grid.offset[1]) :][:, :12])
    assert (slab[:, :, [0, 15]] == -7).all()


def test_cropped_axes_are_centred_on_the_head() -> None:
    volume = _volume(np.zeros((9, 40, 40), np.int16))
    volume.data[:, 22:34, 5:15] = 100
    grid = place_slab(volume, settings=SAME, brain=None)
    slab = to_slab(volume.data, grid, order=0)
    assert slab.sum() == volume.data[2:7].sum()
    assert (slab[:, :, 3:13] == 100).all()


def test_brain_mask_sets_height_and_centre_of_the_slab() -> None:
    volume = _volume(np.full((30, 40, 40), 100, np.int16))
    brain = np.zeros(volume.data.shape, np.uint8)
    brain[5:26, 20:32, 8:24] = 1
    grid = place_slab(volume, settings=SAME, brain=brain)
    assert grid.offset == (14.0, 20.0, 8.0)  # 5 + 0.55 * 20 = 16 in the middle of 5 slices


def _volume(data: bids.Array) -> bids.Volume:
    return bids.volume_of(data, bids.Geometry(axes="RAS", tilt=0))


def test_resampled_masks_return_with_high_overlap(tmp_path: Path) -> None:
    mask = np.zeros((9, 18, 14), np.uint8)
    mask[2:6, 4:12, 3:10] = 1
    path, grid = written(tmp_path, mask, bids.Geometry(axes="LPS"), settings=FINER)
    assert not grid.is_crop
    back = to_source_grid(to_slab(mask, grid, order=0), grid, order=0)
    np.testing.assert_array_equal(back.dataobj, nib.load(path).dataobj)  # finer loses nothing

    coarse = StoreSettings((5, 12, 10), (4.5, 3.0, 3.0), resample=True)
    _, grid = written(tmp_path, mask, bids.Geometry(axes="LPS"), settings=coarse)
    back = np.asarray(to_source_grid(to_slab(mask, grid, order=0), grid, order=0).dataobj)
    there = np.asarray(nib.load(path).dataobj)
    assert 2 * (back * there).sum() / (back.sum() + there.sum()) > 0.75


def test_resampled_ramp_stays_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(14, dtype=np.float32), (9, 18, 14))
    grid = place_slab(_volume(np.ones((9, 18, 14))), settings=FINER, brain=None)
    slab = to_slab(ramp, grid, order=1, fill=0)
    np.testing.assert_allclose(np.diff(slab[:, :, 2:-2], axis=2), 0.5, atol=1e-5)
    np.testing.assert_allclose(slab[0, 0, 2:-2].mean(), 6.5, atol=1e-5)


def test_volume_of_another_shape_than_the_slab_is_refused(tmp_path: Path) -> None:
    _, grid = written(tmp_path, bids.head((9, 18, 14), 0), bids.Geometry())
    with pytest.raises(ValueError, match=r"slab's shape \(5, 12, 16\), got \(5, 12, 12\)"):
        to_source_grid(np.zeros((5, 12, 12)), grid, order=1)


def test_flair_is_scaled_by_percentiles_of_its_foreground() -> None:
    image = np.zeros((4, 10, 10), np.int16)
    image[1:3] = np.arange(200).reshape(2, 10, 10) + 100
    image[1, 0, 0] = 30000  # an outlier is clipped, not the scale
    limits = intensity_range(image, image != 0, percentiles=(1, 99))
    scaled = scale_flair(image, image != 0, limits=limits)
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert (scaled[image == 0] == -1).all()
    assert abs(scaled[image == 200].item()) < 0.02
    limits = intensity_range(image * 3 + 7, image != 0, percentiles=(1, 99))
    again = scale_flair(image * 3 + 7, image != 0, limits=limits)
    np.testing.assert_allclose(again, scaled, atol=1e-5)


def test_case_table_round_trip_keeps_a_grid_bit_for_bit(tmp_path: Path) -> None:
    case = bids.case_of(written(tmp_path, bids.head((9, 18, 14), 0), bids.Geometry())[1])
    table = table_of(StoreSpec(bids.ARMS, case.grid.slab, (3.0, 2.0, 2.0)), [case])
    assert decode_table(encode_table(table)) == table
