"""Write files and directories atomically.

A reader meets the old content or the new content, never a part of either. Every writer first fills
a temporary name beside the target, flushes it to disk and renames it: on one file system a rename
replaces its target in a single step. A process that is killed leaves at most a temporary name.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"  # ends the name of every unfinished file and directory


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step, creating its folder. Raises OSError on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name: two machines that share the folder, or two threads, never write the same one.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as handle:
            handle.write(content)
            handle.flush()
            # Without this a power cut could keep the rename and lose the content.
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` in one step, creating its folder."""
    atomic_write(path, text.encode())


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` in one step, unless the block raises.

    An older `target` is replaced. The temporary folder has a fixed name, so that the next attempt
    removes what a killed one left; only one process may write a `target` at a time.
    """
    partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in partial.rglob("*"):
        if path.is_file():
            _flush(path)
    # A folder that holds files cannot be the target of a rename: the old one steps aside first.
    retired = target.with_name(f".{target.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    if target.exists():
        target.rename(retired)
    partial.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
