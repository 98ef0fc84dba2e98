"""NIfTI files in, in canonical orientation, and out, whole or not at all."""

import gzip
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, inv_ornt_aff

from storage.atomic import atomic_write
from storage.nifti.gzip_stream import (
    READ_ERRORS,
    is_gzip,
    open_stream,
    read_file_checked,
    unreadable_file,
    verify_trailer,
)
from storage.nifti.header_validation import Shape, orientation, validate_header, voxel_sizes
from storage.trial.dataset import SourceFile

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class NiftiGeometry:
    """What a file says of its grid, enough to write another image onto the same one.

    `shape` (i, j, k) and `affine` (voxel to RAS+ mm) are the file's own, before any reorientation.
    `qform` is None where its code is 0.
    """

    shape: Shape
    affine: Matrix
    sform_code: int
    qform_code: int
    qform: Matrix | None
    units: str

    @property
    def orientation(self) -> npt.NDArray[Any]:
        """Flips and permutation that take the file's axes to RAS+ order, in nibabel's terms."""
        return orientation(self.affine)

    @property
    def canonical_affine(self) -> npt.NDArray[np.float64]:
        """Takes indices of the reoriented file (w, h, s) to RAS+ mm."""
        return np.asarray(np.array(self.affine) @ inv_ornt_aff(self.orientation, self.shape))

    @property
    def canonical_shape(self) -> Shape:
        """The shape (s, h, w) of the reoriented file."""
        w, h, s = (self.shape[axis] for axis in np.argsort(self.orientation[:, 0]))
        return s, h, w

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along (s, h, w)."""
        w, h, s = (float(size) for size in voxel_sizes(self.canonical_affine))
        return s, h, w


@dataclass(frozen=True)
class Volume:
    """A file's voxels on (s, h, w): axial slices upwards, rows to anterior, columns to right.

    `affine` takes (w, h, s) indices of `data` to RAS+ mm; `digest` is the sha256 of the file.
    """

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    header: NiftiGeometry
    digest: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along (s, h, w)."""
        return self.header.spacing


@dataclass(frozen=True)
class NiftiFile:
    """A file whose header was judged; of its voxels nothing is decompressed or decoded yet."""

    source: SourceFile
    header: NiftiGeometry
    digest: str
    stream: io.BufferedIOBase
    voxels: nib.arrayproxy.ArrayProxy

    def read(self) -> Volume:
        """Its voxels, scaled as its header says (to float32), turned to (s, h, w) in RAS+.

        Raises CaseError where they are fewer or other than the file promised.
        """
        try:
            data = np.asanyarray(self.voxels).reshape(self.header.shape)
            verify_trailer(self.stream)
        except READ_ERRORS as error:
            raise unreadable_file(self.source, error) from error
        scaled = (self.voxels.slope, self.voxels.inter) != (1, 0)
        native = np.dtype(np.float32) if scaled else data.dtype.newbyteorder("=")
        data = apply_orientation(data.astype(native, copy=False), self.header.orientation)
        affine = self.header.canonical_affine
        return Volume(data.transpose(2, 1, 0), affine, self.header, self.digest)


def read_volume(source: SourceFile) -> Volume:
    """Read a 3-D NIfTI file and turn it by flips and permutations to (s, h, w) in RAS+.

    Raises CaseError where the file cannot be read, or its header cannot be believed.
    """
    return open_nifti(source).read()


def open_nifti(source: SourceFile) -> NiftiFile:
    """The file and what its header says. Raises CaseError where that cannot be true."""
    raw = read_file_checked(source)
    stream = open_stream(raw)
    try:
        claims = _read_header(stream)
        shape = validate_header(claims, source, stored=len(raw), compressed=is_gzip(raw))
        voxels = nib.arrayproxy.ArrayProxy(stream, claims, mmap=False)
    except READ_ERRORS as error:
        raise unreadable_file(source, error) from error
    return NiftiFile(
        source=source,
        header=_header(claims, shape),
        digest=hashlib.sha256(raw).hexdigest(),
        stream=stream,
        voxels=voxels,
    )


def _read_header(stream: io.BufferedIOBase) -> nib.Nifti1Header:
    """The header as nibabel knows it. Its extensions stay unread: they can be of any size."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    if not start:
        raise EOFError("it is empty")
    kinds = (nib.Nifti2Header, nib.Nifti1Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(start)), nib.Nifti1Header)
    claims = kind(start[: kind.sizeof_hdr], check=False)
    absent = claims["pixdim"] == 0
    claims.check_fix()  # raises where it cannot be one
    claims["pixdim"][1:4][absent[1:4]] = 0  # nibabel would make it 1 mm, which is a guess
    return claims


def _header(claims: nib.Nifti1Header, shape: Shape) -> NiftiGeometry:
    qform = claims.get_qform() if claims["qform_code"] else None
    return NiftiGeometry(
        shape=shape,
        affine=as_matrix(claims.get_best_affine()),
        sform_code=int(claims["sform_code"]),
        qform_code=int(claims["qform_code"]),
        qform=None if qform is None else as_matrix(qform),
        units=claims.get_xyzt_units()[0],
    )


def as_matrix(array: npt.NDArray[Any]) -> Matrix:
    """A 4x4 array as nested tuples of floats, for frozen records and JSON."""
    return tuple(tuple(float(value) for value in row) for row in array)


def image_like(header: NiftiGeometry, data: npt.NDArray[Any]) -> nib.Nifti1Image:
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
    atomic_write(path, content)
