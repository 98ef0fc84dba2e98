"""A store that is made, killed, changed and made again: what stays, what is redone, who sees what.

Shards are built in this process; `test_crash_recovery.py` kills real ones.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import StorageError, Store, StoreError, StoreSettings, open_store
from storage.backends.local import LocalBackend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.convert.verify import verify
from storage.store.case_table import CaseTable
from tests.support import bids
from tests.support.corruptions import as_nobody

GEOMETRY = bids.Geometry(shape=(4, 9, 8))
SETTINGS = StoreSettings((4, 8, 8), (3.0, 2.0, 2.0), resample=False, cases_per_shard=2)


class Killed(BaseException):
    """Passes every handler of the code under test, as SIGKILL would."""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects, the third of whom is refused. Tests change copies only."""
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root, 5, geometry=GEOMETRY)
    bids.path_of(root, "sub-03", "w048", "flair").write_bytes(b"")
    return root


@pytest.fixture
def own(trial: Path, tmp_path: Path) -> Path:
    """A copy of the trial to change."""
    return Path(shutil.copytree(trial, tmp_path / "bids"))


class Builder:
    """Builds in this process, and remembers whom it prepared from files and whom it copied."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.copied: list[str] = []

    def __call__(self, builds: Sequence[ShardTask]) -> Iterator[int]:
        for build in builds:
            for member in build.shard.members:
                names = self.prepared if member.known is None else self.copied
                names.append(member.subject.name)
            yield build_shard(build)


def converted(
    root: Path, path: Path, *, settings: StoreSettings = SETTINGS, seed: int = 0
) -> tuple[Store, Builder]:
    build = Builder()
    plan = plan_conversion(root, path, settings=settings, arms=bids.ARMS, seed=seed)
    return convert(plan, build=build), build


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def assert_same_bytes(one: Path, other: Path) -> None:
    left, right = tree(one), tree(other)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def seen(path: Path) -> CaseTable | None:
    """What a reader gets who opens a store now and reads all of it."""
    try:
        store = open_store(path)
    except StoreError:
        return None
    for case in store.cases:
        store.read(case.index)
    return store.table


def die_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die at that write or removal of a file, with a torn file left behind."""
    left = iter(range(step))
    write, remove = LocalBackend.write, LocalBackend.remove

    def dying_write(self: LocalBackend, name: str, content: bytes) -> None:
        if next(left, None) is None:
            torn = self.location / f"{name}.torn.partial"
            torn.parent.mkdir(parents=True, exist_ok=True)
            torn.write_bytes(content[: len(content) // 2])
            raise Killed
        write(self, name, content)

    def dying_remove(self: LocalBackend, names: Sequence[str]) -> None:
        for name in names:
            if next(left, None) is None:
                raise Killed
            remove(self, [name])

    patch.setattr(LocalBackend, "write", dying_write)
    patch.setattr(LocalBackend, "remove", dying_remove)


def deaths(root: Path, path: Path, allowed: Sequence[CaseTable | None]) -> int:
    """Convert with a death at step 0, then at step 1 of what is left, and so on until the end."""
    for step in range(200):
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, step)
            try:
                converted(root, path)
            except Killed:
                pass
            else:
                return step
        assert seen(path) in allowed
    raise AssertionError("it never ended")


def test_a_death_at_any_write_costs_nothing_that_was_finished(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "whole.zarr")
    assert deaths(trial, tmp_path / "killed.zarr", [None, store.table]) > 10
    assert_same_bytes(tmp_path / "whole.zarr", tmp_path / "killed.zarr")


def test_a_death_while_a_store_is_renewed_leaves_the_old_or_the_new(
    own: Path, tmp_path: Path
) -> None:
    old, _ = converted(own, tmp_path / "killed.zarr")
    shutil.copytree(tmp_path / "killed.zarr", tmp_path / "whole.zarr")
    bids.alter(bids.path_of(own, "sub-02", "w096", "flair"), lambda data: data[::-1])
    bids.write_subject(own, "sub-06", geometry=GEOMETRY, seed=77)
    new, _ = converted(own, tmp_path / "whole.zarr")
    assert new.table != old.table
    assert deaths(own, tmp_path / "killed.zarr", [old.table, new.table]) > 10
    assert_same_bytes(tmp_path / "whole.zarr", tmp_path / "killed.zarr")


def test_nothing_is_built_until_settings_or_contents_change(own: Path, tmp_path: Path) -> None:
    first, _ = converted(own, tmp_path / "store.zarr")
    before = tree(tmp_path / "store.zarr")
    for path in own.rglob("*.nii.gz"):
        os.utime(path)  # other times, same content
    again, build = converted(own, tmp_path / "store.zarr")
    assert build.prepared + build.copied == []
    assert again.table == first.table
    after = tree(tmp_path / "store.zarr")
    assert {name for name in after if after[name] != before.get(name)} == {"digest_cache.json"}

    reseeded, build = converted(own, tmp_path / "store.zarr", seed=1)
    assert build.prepared + build.copied == []  # seed and shares decide the split alone
    assert reseeded.table.inputs == first.table.inputs
    wider = replace(SETTINGS, percentiles=(1.0, 99.0))
    _, build = converted(own, tmp_path / "store.zarr", settings=wider)
    assert build.prepared == [f"sub-0{i}" for i in range(1, 6)]


def test_a_change_that_hides_behind_size_and_time_is_found(own: Path, tmp_path: Path) -> None:
    first, _ = converted(own, tmp_path / "store.zarr")
    path = bids.path_of(own, "sub-04", "w096", "net2")
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[4] ^= 1  # gzip's own time stamp: the same voxels, another file
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second, build = converted(own, tmp_path / "store.zarr")
    assert build.prepared == ["sub-04"]
    changed = [c.subject for a, c in zip(first.cases, second.cases, strict=True) if a.row != c.row]
    assert set(changed) <= {"sub-04", "sub-05"}  # its neighbour at most
    assert second.case("sub-04").digest != first.case("sub-04").digest


def test_newcomers_join_without_redoing_anybody(own: Path, tmp_path: Path) -> None:
    first, _ = converted(own, tmp_path / "store.zarr")
    names = [f"sub-0{i}" for i in range(8)]
    for seed, name in enumerate(("sub-00", "sub-06", "sub-07")):
        bids.write_subject(own, name, geometry=GEOMETRY, seed=50 + seed)
        with (own / "participants.tsv").open("a") as table:
            table.write(f"{name}\t40\tM\tn/a\tplacebo\tOPERA\n")
    second, build = converted(own, tmp_path / "store.zarr")
    assert build.prepared == ["sub-00", "sub-06", "sub-07"]
    assert build.copied == ["sub-05"]  # out of the one shard that was not full
    assert [case.subject for case in second.cases] == [n for n in names if n != "sub-03"]
    assert [case.index for case in second.cases] == list(range(7))
    for case in first.cases:
        later = second.case(case.subject)
        assert later.split == case.split
        assert (later.row == case.row) == (case.subject != "sub-05")
    fresh, _ = converted(own, tmp_path / "fresh.zarr")
    assert fresh.table.inputs == second.table.inputs
    for case in fresh.cases:  # copied or prepared, in whatever shard: the same voxels
        one, other = fresh.read(case.index), second.read(case.index)
        for name, block in vars(one).items():
            np.testing.assert_array_equal(block, getattr(other, name))


def test_who_left_is_in_no_file_and_who_was_mended_is_a_case(own: Path, tmp_path: Path) -> None:
    converted(own, tmp_path / "store.zarr")
    for folder in own.rglob("sub-01"):
        shutil.rmtree(folder)
    table = own / "participants.tsv"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if not row.startswith("sub-01")))
    shutil.copy(
        bids.path_of(own, "sub-03", "w096", "flair"), bids.path_of(own, "sub-03", "w048", "flair")
    )
    store, build = converted(own, tmp_path / "store.zarr")
    assert build.prepared == ["sub-03"]
    assert [case.subject for case in store.cases] == ["sub-02", "sub-03", "sub-04", "sub-05"]
    assert store.table.excluded == ()
    assert not [name for name, content in tree(store.path).items() if b"sub-01" in content]
    assert list(verify(store, own)) == []


def test_shards_do_not_say_where_the_trial_lies(own: Path, tmp_path: Path) -> None:
    store, _ = converted(own, tmp_path / "store.zarr")
    (refusal,) = store.table.excluded
    assert refusal.path == str(bids.path_of(own, "sub-03", "w048", "flair"))
    before = tree(store.path / "shards")
    moved = own.rename(tmp_path / "moved")
    again, build = converted(moved, store.path)
    assert (build.prepared, again.table.bids) == ([], str(moved))
    assert again.table.excluded[0].path.startswith(str(moved))
    assert tree(store.path / "shards") == before


def test_cases_are_filed_anew_without_being_prepared(own: Path, tmp_path: Path) -> None:
    converted(own, tmp_path / "store.zarr")
    _, build = converted(
        own, tmp_path / "store.zarr", settings=replace(SETTINGS, cases_per_shard=5)
    )
    assert (build.prepared, len(build.copied)) == ([], 5)
    fresh = tmp_path / "fresh.zarr"
    converted(own, fresh, settings=replace(SETTINGS, cases_per_shard=5))
    assert_same_bytes(tmp_path / "store.zarr", fresh)


def test_a_lost_or_spoiled_record_or_file_is_made_again(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "store.zarr")
    whole = tree(store.path)
    for name in (
        f"{store.cases[0].row.shard}/flair/c/0/0/0/0/0",
        f"{store.cases[0].row.shard}.json",
    ):
        (store.path / "shards" / name).unlink()
        with pytest.raises(StoreError, match="only what is missing is made"):
            open_store(store.path)
        _, build = converted(trial, store.path)
        assert build.prepared == ["sub-01", "sub-02"]
        assert tree(store.path) == whole


def test_a_record_that_was_altered_is_made_again(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "store.zarr")
    whole = tree(store.path)
    record = store.path / f"shards/{store.cases[0].row.shard}.json"
    record.write_text(record.read_text().replace('"age": 30', '"age": 31'))
    _, build = converted(trial, store.path)
    assert build.prepared == ["sub-01", "sub-02"]
    assert tree(store.path) == whole


def test_what_was_finished_before_a_death_serves_a_cohort_that_has_grown(
    own: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        die_at(patch, 25)  # two shards of three are finished
        converted(own, tmp_path / "store.zarr")
    assert sum(p.suffix == ".json" for p in (tmp_path / "store.zarr/shards").iterdir()) == 2
    bids.write_subject(own, "sub-00", geometry=GEOMETRY, seed=50)
    store, build = converted(own, tmp_path / "store.zarr")
    assert build.prepared == ["sub-00", "sub-05"]
    assert len(store.cases) + len(store.table.excluded) == 6


def test_two_conversions_at_once_are_refused(trial: Path, tmp_path: Path) -> None:
    def meanwhile(builds: Sequence[ShardTask]) -> Iterator[int]:
        with pytest.raises(StorageError, match="expected no other conversion, got one that is"):
            converted(trial, tmp_path / "store.zarr")
        yield from map(build_shard, builds)

    plan = plan_conversion(
        trial, tmp_path / "store.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0
    )
    assert len(convert(plan, build=meanwhile).cases) == 4


def test_verify_names_whatever_is_not_as_recorded(own: Path, tmp_path: Path) -> None:
    store, _ = converted(own, tmp_path / "store.zarr")
    assert list(verify(store, own)) == []
    shard = store.cases[0].row.shard
    spoiled = [
        store.path / f"shards/{shard}/masks/c/0/0/0/0/0/0",
        store.path / f"shards/{store.cases[-1].row.shard}.json",
        bids.path_of(own, "sub-02", "w000", "gad"),
    ]
    for path in spoiled:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    gone = bids.path_of(own, "sub-01", "w000", "t2")
    gone.unlink()
    found = list(verify(store, own))
    assert len(found) == 4
    for path in (*spoiled, gone):
        assert sum(str(path) in line for line in found) == 1, path
    assert any(line.startswith("sub-01: ") and "nothing that can be read" in line for line in found)


def test_verify_finds_a_case_table_that_says_something_else(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "store.zarr")
    table = store.path / "cases.json"
    table.write_text(table.read_text().replace('"age": 31', '"age": 13'))
    (line,) = verify(open_store(store.path), trial)
    assert "cases.json: expected what its shards' records say" in line


def test_a_file_that_changes_while_it_is_converted_stops_the_conversion(
    own: Path, tmp_path: Path
) -> None:
    def late(builds: Sequence[ShardTask]) -> Iterator[int]:
        bids.alter(bids.path_of(own, "sub-05", "w000", "flair"), lambda data: data[::-1])
        yield from map(build_shard, builds)

    plan = plan_conversion(own, tmp_path / "store.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0)
    with pytest.raises(StorageError, match="expected the files of sub-05 to stay as they were"):
        convert(plan, build=late)
    assert seen(tmp_path / "store.zarr") is None
    assert len(converted(own, tmp_path / "store.zarr")[0].cases) == 4


def test_a_full_disk_leaves_nothing_half_visible(trial: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(StoreError, match="No space left on device; make room .* run the same"):
            converted(trial, disk / "store.zarr")
        assert seen(disk / "store.zarr") is None
        assert not [p for p in disk.rglob("*") if p.name.endswith(".partial")]
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        converted(trial, disk / "store.zarr")
        converted(trial, tmp_path / "whole.zarr")
        assert_same_bytes(disk / "store.zarr", tmp_path / "whole.zarr")
    finally:
        subprocess.run(["umount", disk], check=True)


LIMITED = """
import resource, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.storage.test_incremental_conversion import converted
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
converted(Path({trial!r}), Path({path!r}))
"""


def test_a_file_that_may_not_grow_is_named(trial: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    code = LIMITED.format(root=root, trial=str(trial), path=str(tmp_path / "store.zarr"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large; make room or grant access" in done.stderr.splitlines()[-1]
    assert seen(tmp_path / "store.zarr") is None


def test_a_folder_that_may_not_be_written_is_named(trial: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    plan = plan_conversion(trial, path, settings=SETTINGS, arms=bids.ARMS, seed=0)
    tmp_path.chmod(0o555)
    with as_nobody(tmp_path), pytest.raises(StoreError, match=r"zarr: .*got Permission denied"):
        convert(plan, build=Builder())
    tmp_path.chmod(0o755)
    assert not path.exists()
