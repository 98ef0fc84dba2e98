"""SHA-256 of a trial's files, cached until the size or a time stamp of a file changes.

As in git's index, a stamp (size, modification time, change time in ns) can only show that a file is
surely unchanged. If the stamp differs, the digest decides. A file that changed within the last tick
of the file system's clock is digested after the tick has passed: from then on every change of its
content changes its stamp. A tick is some milliseconds, or up to two seconds where time stamps are
whole seconds.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from storage.backends.backend import StoreBackend
from storage.digest import sha256_file
from storage.errors import StorageError
from storage.layout import DIGEST_CACHE

logger = logging.getLogger(__name__)

UNREADABLE_DIGEST = "unreadable"  # in place of a digest; never cached
_FINE_TICK_S = 0.05
_COARSE_TICK_S = 2.05  # FAT stores every other second, ext3 and HFS+ every second
_NS_PER_SECOND = 1_000_000_000
_UNCACHED = (-3, -3, -3)  # equals no signature of a file
_MAX_ATTEMPTS = 5
_BATCH = 512  # files between two writes of the cache
_THREADS = 8  # reading and hashing both release the interpreter lock


class FileStamp(NamedTuple):
    """Size, modification time and change time (ns) of a file, and its digest at that time."""

    size: int
    modified: int
    changed: int
    digest: str


def digest_files(root: Path, paths: Iterable[str], *, backend: StoreBackend) -> dict[str, str]:
    """Return the SHA-256 of the files `paths` below `root`.

    `backend` keeps the cache between conversions. Raises StorageError for a file that is being
    written.
    """
    cached = _read_cache(backend)
    stamps: dict[str, FileStamp] = {}
    uncached = []
    for path in paths:
        stamp = cached.get(path)
        if stamp is not None and stamp[:3] == _stat_signature(root / path):
            stamps[path] = stamp
        else:
            uncached.append(path)
    if uncached:
        total = len(uncached) + len(stamps)
        logger.info("conversion.digests: reading %d of %d files", len(uncached), total)
    for digested in _digest_all(root, uncached):
        stamps |= digested
        _write_cache(backend, stamps)  # a killed conversion resumes from here
    return {path: stamp.digest for path, stamp in stamps.items()}


def _digest_all(root: Path, paths: list[str]) -> Iterator[dict[str, FileStamp]]:
    """Yield the stamps of the files in batches."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for first in range(0, len(paths), _BATCH):  # itertools.batched needs Python 3.12
            part = paths[first : first + _BATCH]
            stamps = threads.map(_stamp, (root / path for path in part))
            yield dict(zip(part, stamps, strict=True))


def _stamp(path: Path) -> FileStamp:
    """Return the stamp of a file that did not change while it was read."""
    for _ in range(_MAX_ATTEMPTS):
        before = _stat_signature(path)
        age = time.time() - max(before[1:]) / 1e9
        tick = _tick(before)
        if 0 <= age < tick:
            time.sleep(tick - age)
        try:
            digest = sha256_file(path)
        except OSError:
            # For example a link to content that was never fetched. Conversion excludes the subject.
            return FileStamp(*_UNCACHED, UNREADABLE_DIGEST)
        if _stat_signature(path) == before:
            # The clock of a file server may be ahead. How long its tick lasts is then unknown, and
            # the file is read again next time.
            ahead = before[2] / 1e9 > time.time()
            return FileStamp(*(_UNCACHED if ahead else before), digest)
    raise StorageError(
        f"{path}: expected a stable file, got one that changed while it was read; "
        "wait until copying has finished."
    )


def _tick(signature: tuple[int, int, int]) -> float:
    """Return the seconds within which two changes of a file may have the same time stamps.

    The change time is never set by programs, so whole seconds in it are those of the file system.
    """
    return _FINE_TICK_S if signature[2] % _NS_PER_SECOND else _COARSE_TICK_S


def _stat_signature(path: Path) -> tuple[int, int, int]:
    """Return size, modification and change time (ns) of a file, -2 for each if it is missing."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (twice as fast as Path.stat, and a subject has ten files)
    except OSError:
        return -2, -2, -2  # equals no stamp, not even that of an unreadable file
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_cache(backend: StoreBackend) -> dict[str, FileStamp]:
    """Return the cached stamps, none if the cache is missing or damaged."""
    with suppress(FileNotFoundError, TypeError, ValueError, AttributeError):
        stamps: Mapping[str, list[int | str]] = json.loads(backend.read(DIGEST_CACHE))
        return {path: FileStamp(*fields) for path, fields in stamps.items()}  # type: ignore[arg-type]
    return {}


def _write_cache(backend: StoreBackend, stamps: Mapping[str, FileStamp]) -> None:
    readable = {
        path: stamp for path, stamp in sorted(stamps.items()) if stamp.digest != UNREADABLE_DIGEST
    }
    backend.write(DIGEST_CACHE, json.dumps(readable, indent=0).encode())
