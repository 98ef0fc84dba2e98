"""Write files atomically."""

import os
from pathlib import Path


def atomic_write(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, so that no reader meets a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
