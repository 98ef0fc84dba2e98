"""NIfTI files in, in canonical orientation, and out, whole or not at all."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from storage.bids import Source

# What gzip, zlib and nibabel raise on files that are truncated, corrupt or no NIfTI.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
_GZIP_MAGIC = b"\x1f\x8b"

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Header:
    """What a file says of its grid, enough to write another image onto the same one.

    `shape` (i, j, k) and `affine` (voxel to RAS+ mm) are the file's own, before any reorientation.
    `qform` is None where its code is 0.
    """

    shape: tuple[int, int, int]
    affine: Matrix
    sform_code: int
    qform_code: int
    qform: Matrix | None
    units: str

    @property
    def orientation(self) -> npt.NDArray[Any]:
        """Flips and permutation that take the file's axes to RAS+ order, in nibabel's terms."""
        return _orientation(self.affine)

    @property
    def canonical_affine(self) -> npt.NDArray[np.float64]:
        """Takes indices of the reoriented file (w, h, s) to RAS+ mm."""
        return np.asarray(np.array(self.affine) @ inv_ornt_aff(self.orientation, self.shape))


@lru_cache(maxsize=256)  # most files of a trial share few affines
def _orientation(affine: Matrix) -> npt.NDArray[Any]:
    return np.asarray(io_orientation(np.array(affine)))


@dataclass(frozen=True)
class Volume:
    """A file's voxels on (s, h, w): axial slices upwards, rows to anterior, columns to right.

    `affine` takes (w, h, s) indices of `data` to RAS+ mm; `digest` is the sha256 of the file.
    """

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    header: Header
    digest: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along (s, h, w)."""
        w, h, s = (float(size) for size in np.linalg.norm(self.affine[:3, :3], axis=0))
        return s, h, w


def read_volume(source: Source) -> Volume:
    """Read a 3-D NIfTI file and turn it by flips and permutations to (s, h, w) in RAS+.

    Raises CaseError where the file cannot be read, has several frames, or does not say how it lies.
    """
    try:
        raw = source.path.read_bytes()
        image = _parse(raw)
        data = _single_frame(image, source)
    except _UNREADABLE as error:
        reason = f"expected a whole NIfTI file, got {_first_line(error)}; copy it again"
        raise source.refuse("unreadable file", reason) from error
    header = _header(image, source)
    return Volume(
        data=apply_orientation(data, header.orientation).transpose(2, 1, 0),
        affine=header.canonical_affine,
        header=header,
        digest=hashlib.sha256(raw).hexdigest(),
    )


def _parse(raw: bytes) -> nib.Nifti1Image:
    content = gzip.decompress(raw) if raw.startswith(_GZIP_MAGIC) else raw
    kind = nib.Nifti1Image
    if nib.Nifti2Header.may_contain_header(content[:1024]):
        kind = nib.Nifti2Image
    return kind.from_bytes(content)


def _single_frame(image: nib.Nifti1Image, source: Source) -> npt.NDArray[Any]:
    if len(image.shape) < 3 or any(size != 1 for size in image.shape[3:]):
        reason = f"expected one 3-D volume, got shape {image.shape}"
        raise source.refuse("several frames", f"{reason}; keep the one frame that counts")
    data: npt.NDArray[Any] = np.asanyarray(image.dataobj).reshape(image.shape[:3])
    if data.dtype.kind not in "buif":
        reason = f"expected one real number a voxel, got {data.dtype}; convert it"
        raise source.refuse("unreadable file", reason)
    return data


def _header(image: nib.Nifti1Image, source: Source) -> Header:
    header = image.header
    codes = int(header["sform_code"]), int(header["qform_code"])
    if not any(codes):
        reason = "expected an sform or a qform, got codes 0 and 0, which leave left and right open"
        raise source.refuse("no orientation", f"{reason}; set one of them")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise source.refuse(
            "no orientation", "expected an affine of full rank, got a degenerate one"
        )
    qform = header.get_qform(coded=False) if codes[1] else None
    return Header(
        shape=image.shape[:3],
        affine=as_matrix(image.affine),
        sform_code=codes[0],
        qform_code=codes[1],
        qform=None if qform is None else as_matrix(qform),
        units=header.get_xyzt_units()[0],
    )


def as_matrix(array: npt.NDArray[Any]) -> Matrix:
    """A 4x4 array as nested tuples of floats, for frozen records and JSON."""
    return tuple(tuple(float(value) for value in row) for row in array)


def image_on(header: Header, data: npt.NDArray[Any]) -> nib.Nifti1Image:
    """`data` (i, j, k) as an image with the affine, codes and units of `header`."""
    affine = np.array(header.affine)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units(header.units)
    image.set_qform(None if header.qform is None else np.array(header.qform), header.qform_code)
    image.set_sform(affine if header.sform_code else None, header.sform_code)
    return image


def write_nifti_atomic(image: nib.Nifti1Image, path: Path) -> None:
    """Write `image` to `path` (.nii or .nii.gz), which holds either a whole file or none.

    The compressed bytes carry no time stamp, so equal images give equal files.
    """
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    write_atomic(path, content)


def write_atomic(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, so that no reader meets a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
