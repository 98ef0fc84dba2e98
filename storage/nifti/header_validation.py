"""Validate a NIfTI header before any voxel is read.

The header decides how much memory is allocated and which side is left. Its claims must therefore
fit the size of the file, and its sform, qform and pixdim must agree.
"""

import math
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from storage.nifti.affine import axis_codes, voxel_sizes
from storage.trial.dataset import SourceFile

Shape = tuple[int, int, int]

# Larger than a head at half a millimetre with 64 bits a voxel.
MAX_VOXEL_BYTES = 2**31
# DEFLATE cannot expand one byte to more than this.
_MAX_GZIP_RATIO = 1032
# Voxel sizes of every plausible image of a head.
_VOXEL_SIZE_RANGE_MM = (0.05, 20.0)
# Smallest determinant of an affine, as a share of the product of its voxel sizes.
_MIN_RELATIVE_DETERMINANT = 1e-3
# Relative difference of voxel sizes between affine and pixdim that counts as rounding.
_VOXEL_SIZE_TOLERANCE = 0.01


def validate_header(
    header: nib.Nifti1Header, source: SourceFile, *, stored: int, compressed: bool
) -> Shape:
    """Return the shape (i, j, k) of the file's only volume if the header is consistent.

    `stored` is the size of the file in bytes. Raises CaseError that names the file and the wrong
    claim.
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
        reason = f"expected one 3-D volume, got shape {shape}; keep the one frame to use"
        raise source.rejection("several frames", reason)
    return shape[0], shape[1], shape[2]


def _check_dtype(dtype: np.dtype[Any], source: SourceFile) -> None:
    if dtype.kind not in "buif":
        kind = "colours" if dtype.fields else str(dtype)
        reason = f"expected one real number per voxel, got {kind}; convert it to a grey image"
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
    """Require an affine that is finite, of full rank and of plausible voxel sizes."""
    if not header["sform_code"] and not header["qform_code"]:
        reason = "expected an sform or a qform, got codes 0 and 0, which leave left and right open"
        raise source.rejection("no orientation", f"{reason}; set one of them")
    affine = header.get_best_affine()
    if not np.isfinite(affine).all():
        reason = "expected a finite affine, got NaN or infinity in it; export it again"
        raise source.rejection("no orientation", reason)
    sizes = voxel_sizes(affine)
    if np.prod(sizes) == 0 or abs(
        np.linalg.det(affine[:3, :3])
    ) < _MIN_RELATIVE_DETERMINANT * np.prod(sizes):
        reason = "expected an affine of full rank, got one that maps the volume to a plane"
        raise source.rejection("no orientation", f"{reason} or less; export it again")
    if sizes.min() < _VOXEL_SIZE_RANGE_MM[0] or sizes.max() > _VOXEL_SIZE_RANGE_MM[1]:
        units = header.get_xyzt_units()[0]
        low, high = _VOXEL_SIZE_RANGE_MM
        reason = f"expected voxels of {low} to {high:g} mm, got {_sizes(sizes)}"
        raise source.rejection("voxel size", f"{reason} (unit: {units}); correct the affine")


def _check_sform_qform_agree(header: nib.Nifti1Header, source: SourceFile) -> None:
    """Require that sform, qform and pixdim describe the same axes and voxel sizes.

    Software that follows the standard uses the sform if there is one. Small differences from the
    qform (another origin, a registration) are harmless. Another axis or voxel size is not: either
    of the two may be right, and with the wrong one left and right, or every volume, are wrong.
    """
    affine, pixdim = header.get_best_affine(), header["pixdim"][1:4]
    if not np.allclose(voxel_sizes(affine), pixdim, rtol=_VOXEL_SIZE_TOLERANCE, atol=0):
        reason = (
            f"expected one voxel size, got {_sizes(pixdim)} mm as pixdim and "
            f"{_sizes(voxel_sizes(affine))} mm from the affine"
        )
        raise source.rejection("contradictory header", f"{reason}; correct the wrong one")
    if header["sform_code"] and header["qform_code"]:
        sform, qform = map(axis_codes, (affine, header.get_qform()))
        if sform != qform:
            reason = f"expected one orientation, got {sform} from the sform, {qform} from the qform"
            raise source.rejection("contradictory header", f"{reason}; correct the wrong one")


def _sizes(values: npt.NDArray[Any]) -> str:
    """Return voxel sizes as text."""
    return f"({', '.join(f'{value:.4g}' for value in values)})"
