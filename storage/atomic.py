"""Write files and directories atomically.

A reader meets the old content or the new content, never a part of either. Every writer first fills
a temporary name beside the target, flushes it to disk and renames it: on one file system a rename
replaces its target in a single step. A process that is killed leaves at most a temporary name.
"""

import ctypes
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"  # ends the name of every unfinished file and directory
_FLUSHES = 8  # files that are flushed at the same time
_RETIRED_SUFFIX = ".retired"  # ends the name of a directory that steps aside for a new one
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of Linux's renameat2
# What renameat2 reports where the kernel or the file system, such as NFS, cannot exchange names,
# and what fsync reports for folders of some network file systems.
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step, creating its folder. Raises OSError on failure."""
    _make_folder(path.parent)
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
    # Without this a power cut could lose the rename, although the caller has gone on.
    _flush_folder(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` in one step, creating its folder."""
    atomic_write(path, text.encode())


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` in one step, unless the block raises.

    An older `target` is replaced; if `target` is a link, what it points to is. The temporary folder
    has a fixed name, so that the next attempt removes what a killed one left; only one process may
    write a `target` at a time. Readers find the folder by `current_directory`.
    """
    target = target.resolve() if target.is_symlink() else target
    _make_folder(target.parent)
    if current_directory(target) != target:  # a writer was killed between its two renames
        _retired(target).rename(target)
    partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
    _discard(partial)
    partial.mkdir()
    yield partial
    _flush_tree(partial)
    _replace(partial, target)


def current_directory(target: Path) -> Path:
    """Return the folder that holds the content of `target`; it is `target` but for a moment.

    Where the file system cannot exchange two folders, `atomic_directory` needs two renames. Between
    them, and if its process is killed there, the old folder has another name.
    """
    retired = _retired(target)
    return retired if not target.exists() and retired.is_dir() else target


def _retired(target: Path) -> Path:
    return target.with_name(f".{target.name}{_RETIRED_SUFFIX}")


def _replace(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`, and remove the old `target`."""
    retired = _retired(target)
    if not target.exists():
        partial.rename(target)
    elif not _exchange(partial, target):
        # A folder that holds files cannot be the target of a rename: the old one steps aside first.
        _discard(retired)
        target.rename(retired)
        partial.rename(target)
    _flush_folder(target.parent)
    _discard(partial)
    _discard(retired)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step. Return False where the system cannot."""
    # Python has no function for it. The C library of some systems has none either.
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _discard(path: Path) -> None:
    """Remove a folder or a file, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Create a folder and those above it, and flush each new name to disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _flush_folder(each.parent)


def _flush_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself, to disk."""
    paths = list(folder.rglob("*"))
    # Flushes at the same time share one commit of the file system's journal, which is many times
    # faster than one after the other.
    with ThreadPoolExecutor(_FLUSHES) as pool:
        list(pool.map(_flush, [path for path in paths if path.is_file()]))
    for each in (*(path for path in paths if path.is_dir()), folder):
        _flush_folder(each)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the file system can."""
    try:
        _flush(folder)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
