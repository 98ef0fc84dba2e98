"""Write masks and forecasts as DICOM SEG: each voxel at its position, or an error."""

import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from pydicom import Dataset, dcmread

from storage.export.dicom_seg import Segment, Segmentation, binarise, write_segmentation
from storage.export.dicom_series import DicomError, read_series
from storage.export.dicom_text import character_sets
from tests.support.dicom import Scan, values_at, write_series

SCANS = [
    Scan(),  # axial, oblique
    Scan(axes="IPL", angles=(0.0, 0.0, 0.0)),  # slices from superior to inferior
    Scan(axes="LIP", angles=(3.0, 5.0, -9.0)),  # sagittal
    Scan(axes="PIR", angles=(-20.0, 4.0, 40.0)),  # coronal, columns to the right, strongly rotated
    Scan(axes="SAR", angles=(1.0, 2.0, 3.0)),  # rows and columns both reversed
]
AXES = ["RAS", "LPS", "LAS", "PSR", "SAL", "IRP", "AIL"]


def nifti(scan: Scan, frames: npt.NDArray, axes: str) -> nib.Nifti1Image:
    """Return [slice, row, column] as an image with file axes `axes`, on the same voxels."""
    turn = ornt_transform(io_orientation(scan.affine), axcodes2ornt(axes))
    affine = scan.affine @ inv_ornt_aff(turn, frames.shape)
    return nib.Nifti1Image(np.ascontiguousarray(apply_orientation(frames, turn)), affine)


@pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.axes)
def test_each_voxel_of_a_mask_keeps_its_position(scan: Scan, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    series = read_series(write_series(tmp_path / "series", scan.affine, scan.shape))
    assert series.shape == scan.shape
    for axes in AXES:
        masks = [(rng.random(scan.shape) < 0.2).astype(np.uint8) for _ in range(2)]
        segments = tuple(
            Segment(nifti(scan, mask, axes), f"mask {n}", "As drawn.")
            for n, mask in enumerate(masks)
        )
        path = tmp_path / f"{axes}.dcm"
        write_segmentation(Segmentation(segments, "Masks", "c" * 64, forecast=False), series, path)
        for number, segment in enumerate(segments, start=1):
            expected = np.asarray(segment.image.dataobj)
            values = values_at(path, segment.image, segment=number)
            np.testing.assert_array_equal(values, expected)


def forecast(scan: Scan) -> Segmentation:
    chance = np.random.default_rng(2).random(scan.shape).astype(np.float32)
    chance[:2] = 0
    images = (nifti(scan, chance, "PSR"), nifti(scan, chance / 3, "PSR"))
    segments = tuple(
        Segment(image, f"NET2 w096 forecast, {arm}", "Share of samples. Predicted, not observed.")
        for image, arm in zip(images, ("placebo", "ocrelizumab"), strict=True)
    )
    return Segmentation(segments, "Forecast of new lesions", "d" * 64, forecast=True)


def test_forecast_is_a_fractional_seg_with_its_description(tmp_path: Path) -> None:
    scan, segmentation = SCANS[0], forecast(SCANS[0])
    series = read_series(write_series(tmp_path / "series", scan.affine, scan.shape))
    write_segmentation(segmentation, series, tmp_path / "f.dcm")
    for number, segment in enumerate(segmentation.segments, start=1):
        values = values_at(tmp_path / "f.dcm", segment.image, segment=number)
        np.testing.assert_allclose(values, segment.image.dataobj, atol=0.501 / 255)
    seg = dcmread(tmp_path / "f.dcm")
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    assert seg.SeriesDescription == "Forecast of new lesions (research use only)"
    assert seg.FrameOfReferenceUID == series.images[0].FrameOfReferenceUID
    referenced = {
        instance.ReferencedSOPInstanceUID
        for instance in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == {image.SOPInstanceUID for image in series.images}
    segment_item = seg.SegmentSequence[0]
    assert segment_item.SegmentLabel == "NET2 w096 forecast, placebo"
    assert "Predicted, not observed. Research use only" in segment_item.SegmentDescription
    assert segment_item.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = segment_item.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("lesioncast", "d" * 64)
    kind = segment_item.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("52988006", "SCT")


def test_threshold_turns_probabilities_into_a_binary_seg(tmp_path: Path) -> None:
    segmentation = forecast(SCANS[0])
    series = read_series(write_series(tmp_path / "series", SCANS[0].affine, SCANS[0].shape))
    write_segmentation(binarise(segmentation, 0.25), series, tmp_path / "m.dcm")
    assert dcmread(tmp_path / "m.dcm").SegmentationType == "BINARY"
    image = segmentation.segments[1].image
    values = values_at(tmp_path / "m.dcm", image, segment=2)
    np.testing.assert_array_equal(values, np.asarray(image.dataobj) >= 0.25)


def test_equal_forecasts_get_equal_identifiers(tmp_path: Path) -> None:
    segmentation = forecast(SCANS[0])
    folder = write_series(tmp_path / "series", SCANS[0].affine, SCANS[0].shape)
    uids = []
    for name in ("a", "b"):
        path = tmp_path / name / "seg.dcm"
        write_segmentation(segmentation, read_series(folder), path)
        uids.append(dcmread(path).SOPInstanceUID)
    assert uids[0] == uids[1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"shape": (7, 10, 8)}, "expected 7 slices, 10 rows, 8 columns .* got 6 slices"),
        ({"shape": (6, 8, 10)}, "expected 6 slices, 8 rows, 10 columns"),
        ({"spacing": (3.3, 1.2, 1.0)}, "expected spacing 3.3 x 1.2 x 1 mm .* got 3 x 1.2 x 1 mm"),
        ({"spacing": (3.0, 1.0, 1.2)}, "expected spacing 3 x 1 x 1.2 mm"),
        ({"angles": (12.0, -7.0, 24.0)}, r"corners within 0.1 mm .* lies \d.\d\d mm away"),
        ({"angles": (12.0, 33.0, 21.0)}, "expected the same axes .* rotated by .. degrees"),
        ({"axes": "IPL"}, r"corners within 0.1 mm .* mm away"),
    ],
)
def test_series_on_another_grid_is_refused(
    other: dict[str, object], message: str, tmp_path: Path
) -> None:
    scan = replace(SCANS[0], **other)
    series = read_series(write_series(tmp_path / "s", scan.affine, scan.shape))
    with pytest.raises(DicomError, match=f"{tmp_path / 's'}: .*{message}.* current FLAIR was conv"):
        write_segmentation(forecast(SCANS[0]), series, tmp_path / "x.dcm")
    assert not (tmp_path / "x.dcm").exists()


def test_missing_incomplete_or_several_series_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no images here")
    with pytest.raises(DicomError, match="expected the images of one series.* got none"):
        read_series(tmp_path)
    write_series(tmp_path / "a", Scan().affine, Scan().shape)
    (tmp_path / "a" / "015.dcm").unlink()  # the fourth slice
    with pytest.raises(DicomError, match="expected slices at even steps .* got 5 images"):
        read_series(tmp_path)
    write_series(tmp_path / "b", Scan().affine, Scan().shape, description="T1 MPRAGE")
    with pytest.raises(DicomError, match=r"got (FLAIR \(5 images\), T1 MPRAGE|T1 .*FLAIR)"):
        read_series(tmp_path)


def test_an_unknown_character_set_is_named() -> None:
    image = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.SpecificCharacterSet = ["ISO_IR 100", "X"]
    with pytest.raises(ValueError, match="expected one that DICOM defines, got X"):
        character_sets(image)


def test_maps_with_equal_sums_have_different_identifiers(tmp_path: Path) -> None:
    scan = Scan()
    series = read_series(write_series(tmp_path / "series", scan.affine, scan.shape))
    uids = []
    for number in range(2):
        mask = np.zeros(scan.shape, np.uint8)
        mask[2, 3, number] = 1
        segment = Segment(nifti(scan, mask, "RAS"), "mask", "As drawn.")
        segmentation = Segmentation((segment,), "Masks", "c" * 64, forecast=False)
        write_segmentation(segmentation, series, tmp_path / "seg.dcm")
        uids.append(dcmread(tmp_path / "seg.dcm").SOPInstanceUID)
    assert uids[0] != uids[1]
