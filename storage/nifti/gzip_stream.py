"""Read the bytes of a NIfTI file and decompress gzip on demand."""

import gzip
import io
import zlib

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from storage.errors import CaseError
from storage.nifti.header_validation import MAX_VOXEL_BYTES
from storage.trial.dataset import SourceFile

# Raised by gzip, zlib and nibabel on files that are truncated, corrupt or not NIfTI.
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
_MAX_TRAILING_BYTES = 2**20
_READ_BYTES = 2**16


def read_file_checked(source: SourceFile) -> bytes:
    """Return the bytes of a regular file.

    Raises CaseError for anything else: a folder would raise an error that does not name the
    subject, and a named pipe would block. Files larger than any brain image are rejected before
    reading.
    """
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
    """Return whether the content is gzip, whatever the name of the file."""
    return raw.startswith(_GZIP_MAGIC)


def open_stream(raw: bytes) -> io.BufferedIOBase:
    """Return the content as a stream that decompresses gzip only as far as it is read."""
    stream = io.BytesIO(raw)
    return gzip.GzipFile(fileobj=stream) if is_gzip(raw) else stream


def verify_trailer(stream: io.BufferedIOBase) -> None:
    """Read the rest of a stream behind the voxels.

    At the end of a gzip stream the gzip module compares its checksum with the data. The amount is
    limited, because a small gzip file can expand to any size. Raises ValueError beyond the limit.
    """
    for _ in range(_MAX_TRAILING_BYTES // _READ_BYTES):
        if not stream.read(_READ_BYTES):
            return
    raise ValueError(f"more than {_MAX_TRAILING_BYTES >> 20} MiB after its voxels")


def unreadable_file(source: SourceFile, error: BaseException) -> CaseError:
    """Return the error that excludes a subject because a file is damaged."""
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return source.rejection(
        "unreadable file", f"expected a whole NIfTI file, got {why}; copy it again"
    )
