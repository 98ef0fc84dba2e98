"""Read NIfTI files in canonical orientation (s, h, w), and write them atomically."""

import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, inv_ornt_aff

from storage.atomic import atomic_write
from storage.digest import sha256_bytes
from storage.nifti.affine import Matrix, as_matrix, orientation, voxel_sizes
from storage.nifti.gzip_stream import (
    READ_ERRORS,
    is_gzip,
    open_stream,
    read_file_checked,
    unreadable_file,
    verify_trailer,
)
from storage.nifti.header_fields import (
    EXTENSION_BYTES,
    check_header_fields,
    remove_obstacles,
)
from storage.nifti.header_validation import Shape, validate_header
from storage.trial.dataset import SourceFile


@dataclass(frozen=True)
class NiftiGeometry:
    """Geometry of a NIfTI file, enough to write another image onto the same grid."""

    #: Shape (i, j, k) of the file, before any reorientation.
    shape: Shape
    #: Voxel (i, j, k) to RAS+ mm, before any reorientation.
    affine: Matrix
    sform_code: int
    qform_code: int
    #: None if its code is 0.
    qform: Matrix | None
    #: Spatial unit, as nibabel names it.
    units: str

    @property
    def orientation(self) -> npt.NDArray[Any]:
        """Return nibabel's flips and permutation that take the file's axes to RAS+ order."""
        return orientation(self.affine)

    @property
    def canonical_affine(self) -> npt.NDArray[np.float64]:
        """Return the affine of the reoriented file: indices (w, h, s) to RAS+ mm."""
        return np.asarray(np.array(self.affine) @ inv_ornt_aff(self.orientation, self.shape))

    @property
    def canonical_shape(self) -> Shape:
        """Return the shape (s, h, w) of the reoriented file."""
        w, h, s = (self.shape[axis] for axis in np.argsort(self.orientation[:, 0]))
        return s, h, w

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the millimetres between voxels along (s, h, w)."""
        w, h, s = (float(size) for size in voxel_sizes(self.canonical_affine))
        return s, h, w


@dataclass(frozen=True)
class Volume:
    """Voxels of a file on (s, h, w): slices to superior, rows to anterior, columns to right."""

    data: npt.NDArray[Any]
    #: Indices (w, h, s) of `data` to RAS+ mm.
    affine: npt.NDArray[np.float64]
    #: Geometry of the file.
    header: NiftiGeometry
    #: SHA-256 of the file.
    digest: str

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the millimetres between voxels along (s, h, w)."""
        return self.header.spacing


@dataclass(frozen=True)
class NiftiFile:
    """A file with a valid header whose voxels are not yet decompressed or decoded."""

    source: SourceFile
    header: NiftiGeometry
    digest: str
    stream: io.BufferedIOBase
    voxels: nib.arrayproxy.ArrayProxy

    def read(self) -> Volume:
        """Return the voxels, scaled to float32 if the header asks for it, as (s, h, w) in RAS+.

        Raises CaseError if the voxels are incomplete or corrupt.
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
    """Read a 3-D NIfTI file and reorient it by flips and permutations to (s, h, w) in RAS+.

    Raises CaseError if the file cannot be read or its header is inconsistent.
    """
    return open_nifti(source).read()


def open_nifti(source: SourceFile) -> NiftiFile:
    """Read a file and validate its header.

    Raises CaseError if the file cannot be read or its header is inconsistent.
    """
    raw = read_file_checked(source)
    stream = open_stream(raw)
    try:
        header = _read_header(stream, source)
        shape = validate_header(header, source, stored=len(raw), compressed=is_gzip(raw))
        voxels = nib.arrayproxy.ArrayProxy(stream, header, mmap=False)
    except READ_ERRORS as error:
        raise unreadable_file(source, error) from error
    return NiftiFile(
        source=source,
        header=_geometry(header, shape),
        digest=sha256_bytes(raw),
        stream=stream,
        voxels=voxels,
    )


def _read_header(stream: io.BufferedIOBase, source: SourceFile) -> nib.Nifti1Header:
    """Return the header as nibabel parses it, after checking the values that are stored.

    Header extensions are not read, because they can be of any size.
    """
    start = stream.read(nib.Nifti2Header.sizeof_hdr + EXTENSION_BYTES)
    if not start:
        raise EOFError("it is empty")
    header_classes = (nib.Nifti2Header, nib.Nifti1Header)
    header_class = next(
        (header_class for header_class in header_classes if header_class.may_contain_header(start)),
        nib.Nifti1Header,
    )
    size = header_class.sizeof_hdr
    header = header_class(start[:size], check=False)
    check_header_fields(header, source, behind_header=start[size : size + EXTENSION_BYTES])
    remove_obstacles(header)
    absent = header["pixdim"] == 0
    header.check_fix()  # raises if the bytes are not a header
    # check_fix replaces a pixdim of 0 by 1 mm. That is a guess, and validation must see the 0.
    header["pixdim"][1:4][absent[1:4]] = 0
    return header


def _geometry(header: nib.Nifti1Header, shape: Shape) -> NiftiGeometry:
    qform = header.get_qform() if header["qform_code"] else None
    return NiftiGeometry(
        shape=shape,
        affine=as_matrix(header.get_best_affine()),
        sform_code=int(header["sform_code"]),
        qform_code=int(header["qform_code"]),
        qform=None if qform is None else as_matrix(qform),
        units=header.get_xyzt_units()[0],
    )


def image_like(header: NiftiGeometry, data: npt.NDArray[Any]) -> nib.Nifti1Image:
    """Return `data` (i, j, k) as an image with the affine, codes and units of `header`."""
    affine = np.array(header.affine)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units(header.units)
    image.set_qform(None if header.qform is None else np.array(header.qform), header.qform_code)
    image.set_sform(affine if header.sform_code else None, header.sform_code)
    return image


def write_nifti_atomic(image: nib.Nifti1Image, path: Path) -> None:
    """Write `image` to `path` (.nii or .nii.gz) in one step.

    gzip stores no time stamp, so equal images give equal files.
    """
    content = image.to_bytes()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    atomic_write(path, content)
