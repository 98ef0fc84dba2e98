"""Read the geometry of a DICOM series and bring NIfTI images of the same voxels onto it."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from storage.errors import StorageError
from storage.layout import Array
from storage.nifti.affine import max_corner_distance, voxel_sizes

# Largest distance between corners, as between the files of one subject.
TOLERANCE_MM = 0.1
# Smallest cosine of the angle between two axes that count as the same.
_MIN_COSINE = 0.99
_SPACING_TOLERANCE = 0.01  # relative
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AXES = ("slices", "rows", "columns")


class DicomError(StorageError):
    """A DICOM series cannot be read as a volume, or shows other voxels than an image."""


@dataclass(frozen=True)
class Series:
    """Headers of the images of one series, in the order of their slices.

    `shape` is (slice, row, column). `affine` takes these indices to RAS+ mm.
    """

    folder: Path
    images: tuple[Dataset, ...]
    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing(self) -> Array:
        """Return the millimetres between (slices, rows, columns)."""
        return voxel_sizes(self.affine)


def read_series(folder: Path) -> Series:
    """Return the only series below a folder; files that are not DICOM are skipped.

    Raises DicomError if there is no series or several, or if its images do not form a regular
    volume.
    """
    with header_errors_as_dicom_error(folder):
        return _series(folder, _find_single_series(folder))


@contextmanager
def header_errors_as_dicom_error(folder: Path) -> Iterator[None]:
    """Raise DicomError if a block needs attributes that the headers of the series lack."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of pydicom and highdicom
        raise DicomError(
            f"{folder}: expected complete headers of DICOM images, got incomplete ones "
            f"({error}); give the series as the scanner sent it."
        ) from error


def _series(folder: Path, images: list[Dataset]) -> Series:
    if int(images[0].get("NumberOfFrames", 1)) > 1:
        raise DicomError(f"{folder}: expected one image a file, got a multi-frame file; split it.")
    _, positions = hd.spatial.get_series_volume_positions(images)
    if positions is None:
        raise DicomError(
            f"{folder}: expected slices at even steps along their normal, got "
            f"{len(images)} images with gaps, repeats or another order; give the whole series."
        )
    ordered = tuple(
        image for _, image in sorted(zip(positions, images, strict=True), key=itemgetter(0))
    )
    shape = (len(ordered), int(ordered[0].Rows), int(ordered[0].Columns))
    return Series(folder, ordered, shape, _affine(ordered))


def _find_single_series(folder: Path) -> list[Dataset]:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        image = _header(path)
        if image is not None and ("ImagePositionPatient" in image or "NumberOfFrames" in image):
            series[image.get("SeriesInstanceUID", "without a number")].append(image)
    if len(series) != 1:
        names = ", ".join(
            f"{images[0].get('SeriesDescription', uid)} ({len(images)} images)"
            for uid, images in series.items()
        )
        raise DicomError(
            f"{folder}: expected the images of one series, that of the current FLAIR, "
            f"got {names or 'none'}."
        )
    return next(iter(series.values()))


def _header(path: Path) -> Dataset | None:
    """Return the attributes of an image before its pixels, None if the file is not DICOM.

    Deflated files are rejected, because a small one can expand to any size.
    """
    try:
        if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise DicomError(
                f"{path}: expected a file that is not deflated, got a deflated one; inflate it."
            )
        return dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    except DicomError:
        raise
    except Exception as error:  # pydicom documents no exceptions for damaged files
        raise DicomError(f"{path}: expected DICOM, got a broken file ({error}).") from error


def _affine(images: tuple[Dataset, ...]) -> Array:
    """Return the affine of the volume: (slice, row, column) to RAS+ mm.

    DICOM standard, part 3, section C.7.6.2.1.1. The step between slices follows from their
    positions.
    """
    first = images[0]
    start, end = (np.array(image.ImagePositionPatient, float) for image in (first, images[-1]))
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
    """Return the voxels of `image` as [slice, row, column] of the series by flips and permutations.

    Raises DicomError if the two are not on the same grid.
    """
    order, flipped = _axes_of(image, series)
    data = np.asarray(image.dataobj).transpose(order)
    if data.shape != series.shape:
        raise _grid_mismatch(
            series, f"{_sizes(series.shape)}", f"{_sizes(data.shape)} of the image"
        )
    spacing = voxel_sizes(image.affine)[order]
    if not np.allclose(spacing, series.spacing, rtol=_SPACING_TOLERANCE):
        raise _grid_mismatch(
            series, f"spacing {_mm(series.spacing)}", f"{_mm(spacing)} of the image"
        )
    # The image's affine, but for indices of the series: both then name the same corners.
    reindexed = image.affine @ _series_to_image_indices(series, order, flipped)
    distance = max_corner_distance(reindexed, series.affine, shape=series.shape)
    if distance > TOLERANCE_MM:
        raise _grid_mismatch(
            series,
            f"corners within {TOLERANCE_MM} mm",
            f"an image that lies {distance:.2f} mm away",
        )
    return np.ascontiguousarray(np.flip(data, tuple(np.flatnonzero(flipped))))


def _axes_of(image: nib.Nifti1Image, series: Series) -> tuple[list[int], Array]:
    """Return the image axis along each axis of the series, and whether it is flipped."""
    image_axes, series_axes = (
        affine[:3, :3] / voxel_sizes(affine) for affine in (image.affine, series.affine)
    )
    cosines = series_axes.T @ image_axes
    order = np.abs(cosines).argmax(axis=1)
    along = cosines[np.arange(3), order]
    if sorted(order) != [0, 1, 2] or np.abs(along).min() < _MIN_COSINE:
        angle = np.degrees(np.arccos(np.clip(np.abs(along).min(), 0, 1)))
        raise _grid_mismatch(
            series, "the same axes", f"an image that is rotated by {angle:.0f} degrees"
        )
    return order.tolist(), along < 0


def _series_to_image_indices(series: Series, order: list[int], flipped: Array) -> Array:
    """Return the 4x4 matrix that takes indices of the series to indices of the image."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (image_axis, size) in enumerate(zip(order, series.shape, strict=True)):
        matrix[image_axis, axis] = -1 if flipped[axis] else 1
        matrix[image_axis, 3] = size - 1 if flipped[axis] else 0
    return matrix


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(f"{size} {name}" for size, name in zip(shape, _AXES, strict=True))


def _mm(spacing: Array) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing) + " mm"


def _grid_mismatch(series: Series, expected: str, got: str) -> DicomError:
    name = series.images[0].get("SeriesDescription", "without a description")
    return DicomError(
        f"{series.folder}: expected {expected} as in the DICOM series ({name}), got {got}; give "
        "the series from which the current FLAIR was converted."
    )
