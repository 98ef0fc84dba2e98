"""The sha256 of a trial's files, each read once until its size or a time of it changes.

As in git's index, a stamp (size, times of content and inode in ns) only ever says "surely
the file that was digested"; whether a file has changed is for its digest to say. A file as young as
a tick of the file system's clock is digested when it is older: from then on every change of its
content changes its stamp.
"""

import hashlib
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
from storage.errors import StorageError
from storage.layout import DIGEST_CACHE

log = logging.getLogger(__name__)

UNREADABLE_DIGEST = "unreadable"  # in place of a digest; never taken for known
_MTIME_GRANULARITY_S = 0.05  # seconds
_TRIES = 5
_BATCH = 512
_THREADS = 8  # they wait for the disk or hash, both without the interpreter's lock


class FileStamp(NamedTuple):
    """When a file had which digest."""

    size: int
    modified: int
    changed: int
    digest: str


def digest_files(root: Path, paths: Iterable[str], *, place: StoreBackend) -> dict[str, str]:
    """The digests of the files `paths` below `root`, through what `place` remembers of them."""
    known = _read_stamps(place)
    stamps: dict[str, FileStamp] = {}
    unknown = []
    for path in paths:
        stamp = known.get(path)
        if stamp is not None and stamp[:3] == _stat_signature(root / path):
            stamps[path] = stamp
        else:
            unknown.append(path)
    if unknown:
        log.info(
            "reading %d of %d files for their digests", len(unknown), len(unknown) + len(stamps)
        )
    for found in _digest_all(root, unknown):
        stamps |= found
        _write_stamps(place, stamps)  # a conversion that is killed meanwhile begins from here
    return {path: stamp.digest for path, stamp in stamps.items()}


def digest_file(path: Path) -> str:
    """The sha256 of a file's content. Raises OSError where it cannot be read."""
    if not path.is_file():
        raise OSError(f"{path}: no file")  # a pipe would be waited for, without end
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _digest_all(root: Path, paths: list[str]) -> Iterator[dict[str, FileStamp]]:
    with ThreadPoolExecutor(_THREADS) as threads:
        for first in range(0, len(paths), _BATCH):  # itertools.batched is of Python 3.12
            part = paths[first : first + _BATCH]
            stamps = threads.map(_stamp, (root / path for path in part))
            yield dict(zip(part, stamps, strict=True))


def _stamp(path: Path) -> FileStamp:
    """The stamp of a file that did not change while it was read."""
    for _ in range(_TRIES):
        before = _stat_signature(path)
        age = time.time() - max(before[1:]) / 1e9
        if 0 <= age < _MTIME_GRANULARITY_S:
            time.sleep(_MTIME_GRANULARITY_S - age)
        try:
            digest = digest_file(path)
        except OSError:  # such as a link to content that was never fetched: refused when converted
            return FileStamp(-1, -1, -1, UNREADABLE_DIGEST)
        if _stat_signature(path) == before:
            return FileStamp(*before, digest)
    raise StorageError(f"{path}: expected a file that stays, got one that is still being written.")


def _stat_signature(path: Path) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)  # noqa: PTH116 (half the time, which counts with ten files a subject)
    except OSError:
        return -2, -2, -2  # nobody's stamp
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_stamps(place: StoreBackend) -> dict[str, FileStamp]:
    """What is remembered; nothing where it cannot be read, which costs time and no more."""
    with suppress(FileNotFoundError, TypeError, ValueError, AttributeError):
        remembered: Mapping[str, list[int | str]] = json.loads(place.read(DIGEST_CACHE))
        return {path: FileStamp(*fields) for path, fields in remembered.items()}  # type: ignore[arg-type]
    return {}


def _write_stamps(place: StoreBackend, stamps: Mapping[str, FileStamp]) -> None:
    known = {p: s for p, s in sorted(stamps.items()) if s.digest != UNREADABLE_DIGEST}
    place.write(DIGEST_CACHE, json.dumps(known, indent=0).encode())
