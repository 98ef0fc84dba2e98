"""Whether a NIfTI header can be believed, judged before any voxel is read.

A header is a claim. It decides how much memory a file asks for and which side is left, so what it
claims must fit the bytes that are there, and its several ways to say how a file lies must agree.
"""

import math
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation, ornt2axcodes

from storage.trial.dataset import SourceFile

Shape = tuple[int, int, int]

MAX_VOXEL_BYTES = (
    2**31
)  # bytes of voxels: no head fills them, half a millimetre and 64 bits a voxel do not
_MAX_GZIP_RATIO = 1032  # bytes that one byte of a gzip stream can stand for, at the very most
_VOXEL_SIZE_RANGE_MM = (0.05, 20.0)  # mm between which any image of a head lies
_FULL_RANK = 1e-3  # of the volume that three axes of these lengths span at right angles
_ROUNDING = 0.01  # by which voxel sizes may differ between affine and pixdim


def validate_header(
    header: nib.Nifti1Header, source: SourceFile, *, stored: int, compressed: bool
) -> Shape:
    """The file's one 3-D shape (i, j, k), if all that its header claims can be true.

    `stored` is the file's size in bytes. Raises CaseError that names the file and the claim.
    """
    shape = _one_volume(header, source)
    _check_dtype(header.get_data_dtype(), source)
    _check_size(header, source, stored=stored, compressed=compressed)
    _check_affine(header, source)
    _check_sform_qform_agree(header, source)
    return shape


def _one_volume(header: nib.Nifti1Header, source: SourceFile) -> Shape:
    shape = header.get_data_shape()
    if len(shape) < 3 or min(shape) < 1:
        reason = f"expected three sizes of 1 or more, got shape {shape}; export it again"
        raise source.rejection("not a volume", reason)
    if any(size != 1 for size in shape[3:]):
        reason = f"expected one 3-D volume, got shape {shape}; keep the one frame that counts"
        raise source.rejection("several frames", reason)
    return shape[0], shape[1], shape[2]


def _check_dtype(dtype: np.dtype[Any], source: SourceFile) -> None:
    if dtype.kind not in "buif":
        kind = "colours" if dtype.fields else str(dtype)
        reason = f"expected one real number a voxel, got {kind}; convert it to a grey image"
        raise source.rejection("wrong datatype", reason)


def _check_size(
    header: nib.Nifti1Header, source: SourceFile, *, stored: int, compressed: bool
) -> None:
    voxels = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
    if voxels > MAX_VOXEL_BYTES:
        reason = f"expected at most {MAX_VOXEL_BYTES >> 20} MiB of voxels"
        claim = f"its header claims {voxels >> 20} MiB"
        raise source.rejection("too large", f"{reason}, {claim}; crop it or export it again")
    needed = header.get_data_offset() + voxels
    if needed > stored * (_MAX_GZIP_RATIO if compressed else 1):
        reason = f"expected a whole NIfTI file, got {stored} bytes whose header claims {needed}"
        raise source.rejection("unreadable file", f"{reason}; copy it again")


def _check_affine(header: nib.Nifti1Header, source: SourceFile) -> None:
    """The affine exists, is finite, of full rank, and of a scale that heads have."""
    if not header["sform_code"] and not header["qform_code"]:
        reason = "expected an sform or a qform, got codes 0 and 0, which leave left and right open"
        raise source.rejection("no orientation", f"{reason}; set one of them")
    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        reason = "expected a finite affine, got NaN or infinity in it; export it again"
        raise source.rejection("no orientation", reason)
    sizes = voxel_sizes(affine)
    if np.prod(sizes) == 0 or abs(np.linalg.det(affine[:3, :3])) < _FULL_RANK * np.prod(sizes):
        reason = "expected an affine of full rank, got one that maps the volume to a plane"
        raise source.rejection("no orientation", f"{reason} or less; export it again")
    if sizes.min() < _VOXEL_SIZE_RANGE_MM[0] or sizes.max() > _VOXEL_SIZE_RANGE_MM[1]:
        units = header.get_xyzt_units()[0]
        low, high = _VOXEL_SIZE_RANGE_MM
        reason = f"expected voxels of {low} to {high:g} mm, got {_sizes(sizes)}"
        raise source.rejection("voxel size", f"{reason} (unit: {units}); correct the affine")


def _check_sform_qform_agree(header: nib.Nifti1Header, source: SourceFile) -> None:
    """Where a file says twice how it lies, it says the same.

    The sform is taken where there is one, as the standard's readers do. Its small differences from
    the qform (another origin, a registration) do no harm; another axis or voxel size does: either
    could be the truth, and one of them has left and right, or every volume, wrong.
    """
    affine, pixdim = header.get_best_affine(), np.abs(header["pixdim"][1:4])
    if not np.allclose(voxel_sizes(affine), pixdim, rtol=_ROUNDING, atol=0):
        reason = (
            f"expected one voxel size, got {_sizes(pixdim)} mm as pixdim and "
            f"{_sizes(voxel_sizes(affine))} mm from the affine"
        )
        raise source.rejection("contradictory header", f"{reason}; correct the wrong one")
    if header["sform_code"] and header["qform_code"]:
        sform, qform = map(_axes, (affine, header.get_qform()))
        if sform != qform:
            reason = f"expected one orientation, got {sform} from the sform, {qform} from the qform"
            raise source.rejection("contradictory header", f"{reason}; correct the wrong one")


def orientation(affine: npt.ArrayLike) -> npt.NDArray[Any]:
    """Flips and permutation that take a 4x4 affine's axes to RAS+ order, in nibabel's terms."""
    return _orientation(np.asarray(affine, np.float64).tobytes())


@lru_cache(maxsize=256)  # most files of a trial share few affines
def _orientation(affine: bytes) -> npt.NDArray[Any]:
    return np.asarray(io_orientation(np.frombuffer(affine).reshape(4, 4)))


def _axes(affine: npt.ArrayLike) -> str:
    """Such as RAS."""
    return "".join(ornt2axcodes(orientation(affine)))


def voxel_sizes(affine: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Millimetres between voxels along each axis of an affine (4x4)."""
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _sizes(values: npt.NDArray[Any]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
