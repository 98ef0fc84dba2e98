"""What a conversion is to do, and whether it is done already. Needs no cluster."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from storage.bids import Subject, read_trial
from storage.errors import StorageError, StoreError
from storage.layout import SCHEMA, StoreSpec
from storage.settings import StoreSettings
from storage.store import Store, is_marked, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """A trial on its way to a store at `path`; `seed` decides the split."""

    bids: Path
    path: Path
    subjects: tuple[Subject, ...]
    settings: StoreSettings
    arms: tuple[str, ...]
    seed: int

    @property
    def spec(self) -> StoreSpec:
        return StoreSpec(self.arms, self.settings.slab, self.settings.spacing)

    def digest(self) -> str:
        """The sha256 of all that decides what the store holds, files by their size and time."""
        trial = [
            (subject.name, subject.rows, [(str(s.path), *_stamp(s.path)) for s in subject.sources])
            for subject in self.subjects
        ]
        content = [SCHEMA, asdict(self.settings), self.arms, self.seed, trial]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plan_conversion(
    bids: Path, path: Path, *, settings: StoreSettings, arms: tuple[str, ...], seed: int
) -> Conversion:
    """Look through the BIDS folder `bids`; its images are not read yet.

    Raises StorageError where it is no BIDS folder with subjects.
    """
    bids, path = bids.resolve(), path.resolve()
    return Conversion(bids, path, tuple(read_trial(bids, settings.layout)), settings, arms, seed)


def finished_store(conversion: Conversion) -> Store | None:
    """The store at the conversion's path if it holds just that, None where it is to be made.

    Raises StorageError where something is there that conversion must not replace.
    """
    path = conversion.path
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        store = open_store(path)
    except StoreError as error:
        if not is_marked(path):
            raise StorageError(
                f"{path}: expected a store or nothing, got something else; choose another place."
            ) from error
        log.info("replacing a store that cannot be used: %s", error)
        return None
    return store if store.table.inputs == conversion.digest() else None


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # such as a link to content that was never fetched: refused when it is read
        return -1, -1
    return stat.st_size, stat.st_mtime_ns
