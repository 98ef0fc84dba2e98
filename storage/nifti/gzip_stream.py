"""A file's bytes, unpacked only as far as they are asked for."""

import gzip
import io
import zlib

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from storage.errors import CaseError
from storage.nifti.header_validation import MAX_VOXEL_BYTES
from storage.trial.dataset import SourceFile

# What gzip, zlib and nibabel raise on files that are truncated, corrupt or no NIfTI.
READ_ERRORS = (
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
_TRAILING, _PIECE = 2**20, 2**16  # bytes


def read_file_checked(source: SourceFile) -> bytes:
    """All of a file that is one: a folder, a pipe or a link to nothing would raise or hang."""
    path = source.path
    if not path.is_file():
        got = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "none"
        raise source.rejection("unreadable file", f"expected a file, got {got}; put the file there")
    try:
        if path.stat().st_size > MAX_VOXEL_BYTES:
            reason = (
                f"expected at most {MAX_VOXEL_BYTES >> 20} MiB, got {path.stat().st_size >> 20} MiB"
            )
            raise source.rejection("too large", f"{reason}; crop the image or compress it")
        return path.read_bytes()
    except OSError as error:
        raise unreadable_file(source, error) from error


def is_gzip(raw: bytes) -> bool:
    """Whether a file is gzip, whatever its name says."""
    return raw.startswith(_GZIP_MAGIC)


def open_stream(raw: bytes) -> io.BufferedIOBase:
    """The file's content as a stream."""
    stream = io.BytesIO(raw)
    return gzip.GzipFile(fileobj=stream) if is_gzip(raw) else stream


def verify_trailer(stream: io.BufferedIOBase) -> None:
    """Past the voxels lies little; at the end gzip compares its checksum with what was read."""
    for _ in range(_TRAILING // _PIECE):
        if not stream.read(_PIECE):
            return
    raise ValueError(f"more than {_TRAILING >> 20} MiB after its voxels")


def unreadable_file(source: SourceFile, error: BaseException) -> CaseError:
    """The error that says of a damaged file what was found in it."""
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return source.rejection(
        "unreadable file", f"expected a whole NIfTI file, got {why}; copy it again"
    )
