"""Check each field of a NIfTI header against the range that the standard allows.

nibabel replaces many illegal values by a guess and continues. A guess can turn header bytes into
voxels, scale an image or swap left and right. The fields are therefore checked as they are stored,
before nibabel changes them. Fields that do not affect a voxel or its position are not checked.
"""

from typing import Any, Literal

import nibabel as nib
import numpy as np

from storage.errors import CaseError
from storage.trial.dataset import SourceFile

# Bytes of the flag behind the header that says whether extensions follow.
_EXTENDER_BYTES = 4
# Bytes behind the header that hold the flag and the size of the first extension.
EXTENSION_BYTES = _EXTENDER_BYTES + 4
# Largest file position that fits into the integers of Python's file functions.
_MAX_OFFSET = 2**62
# Codes of sform and qform: unknown, scanner, aligned, Talairach, MNI152, another template.
_TRANSFORM_CODES = range(6)
# Values of pixdim[0]; the standard reads 0 as 1.
_HANDEDNESS = (-1, 0, 1)
# Spatial units in the lower three bits of xyzt_units.
_OTHER_UNITS = {1: "metre", 3: "micrometre"}
_SPATIAL_UNIT_BITS = 7
# How far the squared norm of a stored quaternion may exceed 1. Single precision rounds this much.
_QUATERNION_TOLERANCE = 1e-4


def check_header_fields(
    header: nib.Nifti1Header, source: SourceFile, *, behind_header: bytes
) -> None:
    """Require legal values in the fields that decide voxels, scale and position.

    `behind_header` are the bytes that follow the header. Raises CaseError that names the field.
    """
    _check_kind_of_file(header, source)
    _check_dimensions(header, source)
    _check_first_voxel(header, source, behind_header=behind_header)
    _check_bits(header, source)
    _check_scaling(header, source)
    _check_voxel_sizes(header, source)
    _check_transforms(header, source)


def remove_obstacles(header: nib.Nifti1Header) -> None:
    """Change what nibabel rejects in a checked header although it does no harm.

    The quaternion is scaled to norm 1 if rounding made it longer. The unit of time is removed.
    """
    header["xyzt_units"] = int(header["xyzt_units"]) & _SPATIAL_UNIT_BITS
    quaternion = _quaternion(header)
    squared_norm = float(quaternion @ quaternion)
    if header["qform_code"] and 1 - squared_norm < header.quaternion_threshold:
        for field, value in zip("bcd", quaternion / np.sqrt(squared_norm), strict=True):
            header[f"quatern_{field}"] = value


def _illegal(source: SourceFile, expected: str, got: object) -> CaseError:
    """Return the error that excludes a subject because a header field has an illegal value."""
    return source.rejection(
        "illegal header", f"expected {expected}, got {got}; correct the header or export it again"
    )


def _check_kind_of_file(header: nib.Nifti1Header, source: SourceFile) -> None:
    size = int(header["sizeof_hdr"])
    if size != header.sizeof_hdr:
        raise source.rejection(
            "unreadable file",
            f"expected a whole NIfTI file, whose sizeof_hdr is {header.sizeof_hdr}, got {size}; "
            "copy it again",
        )
    # numpy drops the zero bytes at the end of the field.
    magic = header["magic"].item()
    if magic == header.pair_magic:
        expected = f"header and voxels in one file, with the magic {header.single_magic.decode()}"
        raise _illegal(source, expected, f"{magic.decode()}, which means voxels in an .img file")


def _check_dimensions(header: nib.Nifti1Header, source: SourceFile) -> None:
    """Require sizes as they are stored.

    nibabel reads some sizes of surfaces elsewhere in the header, as FreeSurfer does.
    """
    n_dimensions = int(header["dim"][0])
    sizes = tuple(int(size) for size in header["dim"][1 : 1 + max(n_dimensions, 0)])
    if 1 <= n_dimensions <= 7 and min(sizes) < 1:
        reason = f"expected three sizes of 1 or more, got shape {sizes}; export it again"
        raise source.rejection("not a volume", reason)


def _check_first_voxel(
    header: nib.Nifti1Header, source: SourceFile, *, behind_header: bytes
) -> None:
    """Require that the first voxel lies behind the header and its first extension."""
    offset, lowest = float(header["vox_offset"]), header.single_vox_offset
    if not np.isfinite(offset) or offset != int(offset) or not lowest <= offset < _MAX_OFFSET:
        expected = f"a whole number of bytes from {lowest} on as vox_offset in a single file"
        raise _illegal(source, expected, f"{offset:g}")
    if len(behind_header) < EXTENSION_BYTES or not behind_header[0]:
        return
    byte_order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    size = int.from_bytes(behind_header[_EXTENDER_BYTES:EXTENSION_BYTES], byte_order, signed=True)
    if size < 8 or lowest + size > offset:
        expected = f"a first voxel behind the header's extension of {size} bytes"
        raise _illegal(source, expected, f"vox_offset {offset:g}")


def _check_bits(header: nib.Nifti1Header, source: SourceFile) -> None:
    bits = int(header["bitpix"])
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        return  # a datatype that nibabel does not have; it raises an error of its own
    if bits != dtype.itemsize * 8:
        expected = f"a bitpix of {dtype.itemsize * 8}, as datatype {int(header['datatype'])} has"
        raise _illegal(source, expected, bits)


def _check_scaling(header: nib.Nifti1Header, source: SourceFile) -> None:
    """Require a finite scaling. The standard reads a slope of 0 as no scaling."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope):
        raise _illegal(source, "a finite slope in scl_slope", slope)
    if slope and not np.isfinite(intercept):
        raise _illegal(source, "a finite intercept in scl_inter", intercept)


def _check_voxel_sizes(header: nib.Nifti1Header, source: SourceFile) -> None:
    sizes: Any = header["pixdim"][1:4]
    # A size of 0 contradicts the affine, which is checked with it.
    if not np.isfinite(sizes).all() or (sizes < 0).any():
        got = ", ".join(f"{size:.4g}" for size in sizes)
        raise _illegal(source, "positive voxel sizes in pixdim[1] to pixdim[3]", f"({got})")
    unit = int(header["xyzt_units"]) & _SPATIAL_UNIT_BITS
    if unit not in (0, 2):
        expected = "mm, or no unit, in xyzt_units"
        got = _OTHER_UNITS.get(unit, f"the unknown code {unit}")
        raise source.rejection(
            "voxel size", f"expected {expected}, got {got}; convert affine and pixdim to mm"
        )


def _check_transforms(header: nib.Nifti1Header, source: SourceFile) -> None:
    for field in ("sform_code", "qform_code"):
        if int(header[field]) not in _TRANSFORM_CODES:
            expected = f"a code from 0 to {_TRANSFORM_CODES[-1]} in {field}"
            raise _illegal(source, expected, int(header[field]))
    if not header["qform_code"]:
        return  # the fields of the qform then have no meaning
    handedness = float(header["pixdim"][0])
    if handedness not in _HANDEDNESS:
        raise _illegal(source, "-1 or 1 in pixdim[0], the handedness of the qform", handedness)
    quaternion = _quaternion(header)
    squared_norm = float(quaternion @ quaternion)
    if not squared_norm <= 1 + _QUATERNION_TOLERANCE:  # also true for NaN
        expected = "quatern_b, quatern_c and quatern_d of a rotation, of norm 1 or less"
        raise _illegal(source, expected, f"norm {np.sqrt(squared_norm):.4g}")
    offsets = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    if not np.isfinite(offsets).all():
        raise _illegal(source, "a finite origin in qoffset_x, qoffset_y and qoffset_z", offsets)


def _quaternion(header: nib.Nifti1Header) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the stored part (b, c, d) of the qform's quaternion."""
    return np.array([header[f"quatern_{field}"] for field in "bcd"], np.float64)
