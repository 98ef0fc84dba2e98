"""A DICOM series as the grid of NIfTI images that show the same voxels."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from storage.errors import StorageError

Array = npt.NDArray[Any]

TOLERANCE_MM = 0.1  # at the corners of the volume, as among the files of one subject
_PARALLEL = 0.99  # cosine of the largest angle between axes that are taken for the same
_SAME_SPACING = 0.01
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AXES = ("slices", "rows", "columns")


class DicomError(StorageError):
    """A DICOM series that cannot be read as a volume, or that shows other voxels than an image."""


@dataclass(frozen=True)
class Series:
    """The images of one series in the order of their slices, without their pixels.

    `shape` is (slice, row, column); `affine` takes these indices to RAS+ mm.
    """

    folder: Path
    images: tuple[Dataset, ...]
    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing(self) -> Array:
        """Millimetres between (slices, rows, columns)."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))


def read_series(folder: Path) -> Series:
    """The one series in a folder, at whatever depth; files that are not DICOM are passed over.

    Raises DicomError where there is none or several, or where its images make no regular volume.
    """
    with header_errors_as_dicom_error(folder):
        return _series(folder, _find_single_series(folder))


@contextmanager
def header_errors_as_dicom_error(folder: Path) -> Iterator[None]:
    """Raises DicomError where a block needs what the headers of the series there lack."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # pydicom's and highdicom's
        raise DicomError(
            f"{folder}: expected complete headers of DICOM images, got ones that do not do "
            f"({error}); give the series as the scanner sent it."
        ) from error


def _series(folder: Path, images: list[Dataset]) -> Series:
    if int(images[0].get("NumberOfFrames", 1)) > 1:
        raise DicomError(f"{folder}: expected one image a file, got a multi-frame file; split it.")
    _, places = hd.spatial.get_series_volume_positions(images)
    if places is None:
        raise DicomError(
            f"{folder}: expected slices at even steps along their normal, got "
            f"{len(images)} images with gaps, repeats or another order; give the whole series."
        )
    ordered = tuple(image for _, image in sorted(zip(places, images, strict=True), key=_first))
    shape = (len(ordered), int(ordered[0].Rows), int(ordered[0].Columns))
    return Series(folder, ordered, shape, _affine(ordered))


def _first(pair: tuple[int, Dataset]) -> int:
    return pair[0]


def _find_single_series(folder: Path) -> list[Dataset]:
    found: dict[str, list[Dataset]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        image = _header(path)
        if image is not None and ("ImagePositionPatient" in image or "NumberOfFrames" in image):
            found[image.get("SeriesInstanceUID", "without a number")].append(image)
    if len(found) != 1:
        names = ", ".join(
            f"{images[0].get('SeriesDescription', uid)} ({len(images)} images)"
            for uid, images in found.items()
        )
        raise DicomError(
            f"{folder}: expected the images of one series, that of the w048 FLAIR, "
            f"got {names or 'none'}."
        )
    return next(iter(found.values()))


def _header(path: Path) -> Dataset | None:
    """What is said of an image before its pixels; None where the file is no DICOM.

    Deflated files are refused: a small one can unpack to any size.
    """
    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DicomError(f"{path}: expected a file that is not deflated; rewrite it inflated.")
        return dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    except DicomError:
        raise
    except Exception as error:  # pydicom names no errors of its own for what is broken further on
        raise DicomError(f"{path}: expected DICOM, got a broken file ({error}).") from error


def _affine(images: tuple[Dataset, ...]) -> Array:
    """Part 3 of the DICOM standard, section C.7.6.2.1.1, with the slices' step from positions."""
    first = images[0]
    start, end = (np.array(each.ImagePositionPatient, float) for each in (first, images[-1]))
    along_columns, along_rows = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, first.PixelSpacing)
    if len(images) > 1:
        step = (end - start) / (len(images) - 1)
    else:
        step = np.cross(along_columns, along_rows) * float(first.SliceThickness)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = along_rows * between_rows
    affine[:3, 2] = along_columns * between_columns
    affine[:3, 3] = start
    return _LPS_TO_RAS @ affine


def reorient_to_series(image: nib.Nifti1Image, series: Series) -> Array:
    """The voxels of `image` as [slice, row, column] of the series: flips and permutations only.

    Raises DicomError where the two are not the same grid.
    """
    order, flipped = _axes_of(image, series)
    data = np.asarray(image.dataobj).transpose(order)
    if data.shape != series.shape:
        raise _grid_mismatch(
            series, f"{_sizes(series.shape)}", f"{_sizes(data.shape)} of the image"
        )
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)[order]
    if not np.allclose(spacing, series.spacing, rtol=_SAME_SPACING):
        raise _grid_mismatch(
            series, f"spacing {_mm(series.spacing)}", f"{_mm(spacing)} of the image"
        )
    apart = _largest_distance(image, series, order, flipped)
    if apart > TOLERANCE_MM:
        raise _grid_mismatch(
            series, f"corners within {TOLERANCE_MM} mm", f"an image that lies {apart:.2f} mm away"
        )
    return np.ascontiguousarray(np.flip(data, tuple(np.flatnonzero(flipped))))


def _axes_of(image: nib.Nifti1Image, series: Series) -> tuple[list[int], Array]:
    """Which axis of the image runs along each of the series', and whether backwards."""
    own, theirs = (m[:3, :3] / np.linalg.norm(m[:3, :3], axis=0) for m in _affines(image, series))
    cosines = theirs.T @ own
    order = np.abs(cosines).argmax(axis=1)
    along = cosines[np.arange(3), order]
    if sorted(order) != [0, 1, 2] or np.abs(along).min() < _PARALLEL:
        angle = np.degrees(np.arccos(np.clip(np.abs(along).min(), 0, 1)))
        raise _grid_mismatch(
            series, "the same axes", f"an image that is turned by {angle:.0f} degrees"
        )
    return order.tolist(), along < 0


def _affines(image: nib.Nifti1Image, series: Series) -> tuple[Array, Array]:
    return np.asarray(image.affine), series.affine


def _largest_distance(
    image: nib.Nifti1Image, series: Series, order: list[int], flipped: Array
) -> float:
    last = np.array(series.shape) - 1
    corners = np.array(np.meshgrid(*((0, end) for end in last))).reshape(3, -1)
    own = np.empty_like(corners)
    own[order] = np.where(flipped[:, None], last[:, None] - corners, corners)
    there = series.affine[:3, :3] @ corners + series.affine[:3, 3:]
    here = image.affine[:3, :3] @ own + image.affine[:3, 3:]
    return float(np.linalg.norm(here - there, axis=0).max())


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(f"{size} {name}" for size, name in zip(shape, _AXES, strict=True))


def _mm(spacing: Array) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing) + " mm"


def _grid_mismatch(series: Series, expected: str, got: str) -> DicomError:
    name = series.images[0].get("SeriesDescription", "without a description")
    return DicomError(
        f"{series.folder}: expected {expected} as in the DICOM series ({name}), got {got}; give "
        "the series that the w048 FLAIR was converted from."
    )
