"""The export job, as a user runs it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from lesioncast.forecasting.output.bids import forecast_path, new_map_path, summary_path
from lesioncast.jobs import export
from storage import Store, to_source_grid, write_nifti_atomic
from storage.export.bids_derivative import sidecar_path, write_json
from storage.export.bids_names import derived_names
from storage.export.export import exported_path
from tests.support.dicom import values_at, write_series
from tests.support.forecast import write_store

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("job")
    return write_store(folder / "store.zarr", folder / "bids", test=2)


def run(store: Store, out: Path, *flags: str) -> int:
    given = ["--config", str(DEMO), "--store", str(store.path), "--out", str(out)]
    return export.main([*given, *flags])


def series_of(image: nib.Nifti1Image, folder: Path) -> Path:
    """Write a DICOM series on the grid of an image: slices along k, rows along j, columns along i.

    DICOM has no skewed axes, so the series has the orthogonal axes nearest to those of the image.
    """
    axes, shape = image.affine[:3, 2::-1], np.array(image.shape[::-1])
    spacing = np.linalg.norm(axes, axis=0)
    left, _, right = np.linalg.svd(axes / spacing)
    affine = np.eye(4)
    affine[:3, :3] = left @ right * spacing
    affine[:3, 3] = image.affine[:3, 3] + (axes - affine[:3, :3]) @ (shape - 1) / 2
    return write_series(folder, affine, tuple(map(int, shape)))


def test_masks_are_exported_as_nifti_and_as_dicom_seg_on_the_series(
    store: Store, tmp_path: Path
) -> None:
    case = store.case("sub-02")
    flair = to_source_grid(store.read(case.index).flair[1], case.grid, order=1)
    series = series_of(flair, tmp_path / "series")
    wanted = ["--subjects", "sub-02", "--channels", "w048/net2,w096/net2,w048/flair"]
    assert run(store, tmp_path / "out", *wanted, "--dicom", str(series)) == 0
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.nii.gz")) == [
        "sub-02_ses-w048_space-orig_desc-normalised_FLAIR.nii.gz",
        "sub-02_ses-w048_space-orig_label-L_desc-NET2_mask.nii.gz",
        "sub-02_ses-w096_space-orig_label-L_desc-NET2_mask.nii.gz",
    ]
    seg = tmp_path / "out/dicom/sub-02_seg.dcm"
    names = derived_names(case, store.spec.visits)
    for segment, name in enumerate(("w048/net2", "w096/net2"), start=1):
        mask = nib.load(exported_path(tmp_path / "out", names, name))
        assert np.asarray(mask.dataobj).sum() == 4
        np.testing.assert_array_equal(values_at(seg, mask, segment=segment), mask.dataobj)
    described = dcmread(seg).SegmentSequence[1]
    assert (described.SegmentLabel, described.SegmentAlgorithmType) == ("W096 NET2", "MANUAL")


@pytest.fixture
def forecasts(store: Store, tmp_path: Path) -> Path:
    """Write a forecast of sub-01 under two arms."""
    root = tmp_path / "forecasts"
    case = store.case("sub-01")
    grid, names = case.grid, derived_names(case, store.spec.visits)
    for arm, chance in (("avonex", 0.25), ("placebo", 0.75)):
        path = new_map_path(root, names, arm)
        volume = np.zeros(grid.slab)
        volume[2, 5:8, 4:9] = chance
        write_nifti_atomic(to_source_grid(volume, grid, order=1), path)
        said = {
            "Arm": arm,
            "Description": "Share of 4 samples.",
            "BundleDigest": "b" * 64,
            "ForecastSession": "m24",
        }
        write_json(sidecar_path(path), said)
    write_json(summary_path(root, "sub-01"), {})
    return root


def test_forecasts_are_exported_as_dicom_probabilities_or_masks(
    store: Store, forecasts: Path, tmp_path: Path
) -> None:
    maps = [nib.load(forecast_path(forecasts, "sub-01", arm)) for arm in ("avonex", "placebo")]
    given = ["--forecasts", str(forecasts), "--dicom", str(series_of(maps[0], tmp_path / "s"))]
    assert run(store, tmp_path / "out", *given) == 0
    seg = tmp_path / "out/dicom/sub-01_seg.dcm"
    for segment, image in enumerate(maps, start=1):
        found = values_at(seg, image, segment=segment)
        np.testing.assert_allclose(found, image.dataobj, atol=0.501 / 255)
    assert dcmread(seg).DeviceSerialNumber == "b" * 64
    assert run(store, tmp_path / "masks", *given, "--threshold", "0.5") == 0
    found = values_at(tmp_path / "masks/dicom/sub-01_seg.dcm", maps[1], segment=2)
    assert found.sum() == 15
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_series_is_used_for_its_own_subject_alone(
    store: Store, forecasts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flair = nib.load(forecast_path(forecasts, "sub-01", "avonex"))
    series = series_of(flair, tmp_path / "series")
    assert run(store, tmp_path / "out", "--dicom", str(series)) == 1
    assert "expected a folder sub-01 with its series, got none" in caplog.text
    (tmp_path / "all").mkdir()
    series.rename(tmp_path / "all" / "sub-01")
    given = ["--subjects", "sub-01", "--dicom", str(tmp_path / "all")]
    assert run(store, tmp_path / "out", *given) == 0


def test_an_impossible_export_ends_with_a_message(
    store: Store, forecasts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(store, tmp_path / "out", "--forecasts", str(forecasts)) == 2
    other = write_series(tmp_path / "other", np.diag([3.0, 2.0, 2.0, 1.0]), (9, 18, 14))
    for flags, message in (
        (["--forecasts", str(forecasts), "--dicom", str(other)], "got an image that is rotated"),
        (["--forecasts", str(forecasts), "--subjects", "sub-09", "--dicom", "x"], "got none; run"),
        (["--channels", "w096/t1"], "expected names such as w096/net2"),
        (["--subjects", "sub-77"], "expected a case of sub-77"),
    ):
        assert run(store, tmp_path / "out", *flags) == 1
        assert message in caplog.text
