"""SHA-256 digests of files and of content in memory, in hexadecimal."""

import hashlib
from pathlib import Path


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content. Raises OSError if it cannot be read."""
    if not path.is_file():
        # Opening a named pipe would wait for a writer, perhaps for ever.
        raise FileNotFoundError(f"{path}: expected a regular file, got none")
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
