"""Convert small trials in this process, and stop a conversion at any write."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from storage import Store, StoreError, StoreSettings, open_store
from storage.backends.local import LocalBackend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import build_on_ray, convert
from storage.convert.plan import plan_conversion
from storage.store.case_table import CaseTable
from tests.support import bids

GEOMETRY = bids.Geometry(shape=(4, 9, 8))
SETTINGS = StoreSettings((4, 8, 8), (3.0, 2.0, 2.0), resample=False, cases_per_shard=2)


class Killed(BaseException):
    """Raised in place of SIGKILL; no handler of the code under test catches it."""


class Builder:
    """Build shards in this process, and record which subjects were preprocessed or copied."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.copied: list[str] = []

    def __call__(self, tasks: Sequence[ShardTask]) -> Iterator[int]:
        for task in tasks:
            for member in task.shard.members:
                names = self.prepared if member.existing is None else self.copied
                names.append(member.subject.name)
            yield build_shard(task)


def converted(
    root: Path, path: Path, *, settings: StoreSettings = SETTINGS, seed: int = 0
) -> tuple[Store, Builder]:
    """Convert a trial in this process; return the store and what was built."""
    builder = Builder()
    plan = plan_conversion(root, path, settings=settings, arms=bids.ARMS, seed=seed)
    return convert(plan, build=builder), builder


def run_conversion(trial: Path, path: Path, address: str) -> None:
    """Convert a trial in the process of a driver, on the Ray cluster at `address` if it is set."""
    plan = plan_conversion(trial, path, settings=SETTINGS, arms=bids.ARMS, seed=0)
    if not address:
        convert(plan, build=Builder())
        return
    ray.init(address=address, log_to_driver=False)
    convert(plan, build=build_on_ray)


def tree(path: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def assert_same_bytes(one: Path, other: Path) -> None:
    """Assert that two folders hold the same files with the same content."""
    left, right = tree(one), tree(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def readable_table(path: Path) -> CaseTable | None:
    """Open a store, read every case and return its table, None if there is no store."""
    try:
        store = open_store(path)
    except StoreError:
        return None
    for case in store.cases:
        store.read(case.index)
    return store.table


def kill_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """Raise `Killed` at that write or removal of a file, and leave a partial file behind."""
    steps_left = iter(range(step))
    write, remove = LocalBackend.write, LocalBackend.remove

    def dying_write(self: LocalBackend, name: str, content: bytes) -> None:
        if next(steps_left, None) is None:
            torn = self.location / f"{name}.torn.partial"
            torn.parent.mkdir(parents=True, exist_ok=True)
            torn.write_bytes(content[: len(content) // 2])
            raise Killed
        write(self, name, content)

    def dying_remove(self: LocalBackend, names: Sequence[str]) -> None:
        for name in names:
            if next(steps_left, None) is None:
                raise Killed
            remove(self, [name])

    patch.setattr(LocalBackend, "write", dying_write)
    patch.setattr(LocalBackend, "remove", dying_remove)


def convert_with_kills(root: Path, path: Path, allowed: Sequence[CaseTable | None]) -> int:
    """Convert with a kill at step 0, then at step 1 of what remains, and so on.

    Returns the number of kills before a conversion finished.
    """
    for step in range(200):
        with pytest.MonkeyPatch.context() as patch:
            kill_at_step(patch, step)
            try:
                converted(root, path)
            except Killed:
                pass
            else:
                return step
        assert readable_table(path) in allowed
    raise AssertionError("the conversion never finished")
