"""Convert, kill, change and convert again: what is kept, rebuilt and visible to readers.

Shards are built in this process; `test_crash_recovery.py` kills real processes.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import StorageError, StoreError, TrialLayout, open_store
from storage.backends.local import LocalBackend
from storage.convert import file_digests
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.file_digests import digest_files
from storage.convert.plan import plan_conversion
from storage.convert.verify import verify
from storage.trial.description import TrialDescription
from tests.storage.convert.conversion import (
    GEOMETRY,
    SETTINGS,
    Builder,
    Killed,
    assert_same_bytes,
    convert_with_kills,
    converted,
    kill_at_step,
    readable_table,
    tree,
)
from tests.support import bids
from tests.support.corruptions import as_nobody


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trial of five subjects, the third of whom is excluded. Tests change copies only."""
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root, 5, geometry=GEOMETRY)
    bids.path_of(root, "sub-03", "w048", "flair").write_bytes(b"")
    return root


@pytest.fixture
def own_trial(trial: Path, tmp_path: Path) -> Path:
    """Return a copy of the trial to change."""
    return Path(shutil.copytree(trial, tmp_path / "bids"))


def test_conversion_killed_at_any_write_resumes_to_the_same_bytes(
    trial: Path, tmp_path: Path
) -> None:
    store, _ = converted(trial, tmp_path / "whole.zarr")
    assert convert_with_kills(trial, tmp_path / "killed.zarr", [None, store.table]) > 10
    assert_same_bytes(tmp_path / "whole.zarr", tmp_path / "killed.zarr")


def test_update_killed_at_any_write_leaves_the_old_or_the_new_store(
    own_trial: Path, tmp_path: Path
) -> None:
    old, _ = converted(own_trial, tmp_path / "killed.zarr")
    shutil.copytree(tmp_path / "killed.zarr", tmp_path / "whole.zarr")
    bids.alter(bids.path_of(own_trial, "sub-02", "w096", "flair"), lambda data: data[::-1])
    bids.write_subject(own_trial, "sub-06", geometry=GEOMETRY, seed=77)
    new, _ = converted(own_trial, tmp_path / "whole.zarr")
    assert new.table != old.table
    assert convert_with_kills(own_trial, tmp_path / "killed.zarr", [old.table, new.table]) > 10
    assert_same_bytes(tmp_path / "whole.zarr", tmp_path / "killed.zarr")


def test_unchanged_settings_and_files_build_nothing(own_trial: Path, tmp_path: Path) -> None:
    first, _ = converted(own_trial, tmp_path / "store.zarr")
    before = tree(tmp_path / "store.zarr")
    for path in own_trial.rglob("*.nii.gz"):
        os.utime(path)  # other times, same content
    again, builder = converted(own_trial, tmp_path / "store.zarr")
    assert builder.prepared + builder.copied == []
    assert again.table == first.table
    after = tree(tmp_path / "store.zarr")
    assert {name for name in after if after[name] != before.get(name)} == {"digest_cache.json"}

    reseeded, builder = converted(own_trial, tmp_path / "store.zarr", seed=1)
    assert builder.prepared + builder.copied == []  # seed and fractions affect only the split
    assert reseeded.table.inputs == first.table.inputs
    wider = replace(SETTINGS, percentiles=(1.0, 99.0))
    _, builder = converted(own_trial, tmp_path / "store.zarr", settings=wider)
    assert builder.prepared == [f"sub-0{i}" for i in range(1, 6)]


def test_changed_file_with_equal_size_and_mtime_is_detected(
    own_trial: Path, tmp_path: Path
) -> None:
    first, _ = converted(own_trial, tmp_path / "store.zarr")
    path = bids.path_of(own_trial, "sub-04", "w096", "net2")
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[4] ^= 1  # gzip's own time stamp: the same voxels, another file
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second, builder = converted(own_trial, tmp_path / "store.zarr")
    assert builder.prepared == ["sub-04"]
    changed = [c.subject for a, c in zip(first.cases, second.cases, strict=True) if a.row != c.row]
    assert set(changed) <= {"sub-04", "sub-05"}  # at most the other subject of its shard
    assert second.case("sub-04").digest != first.case("sub-04").digest


def test_changed_file_is_detected_where_time_stamps_are_whole_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precise = file_digests._stat_signature

    def whole_seconds(path: Path) -> tuple[int, int, int]:
        size, *times = precise(path)
        modified, changed = (ns // 10**9 * 10**9 for ns in times)
        return size, modified, changed

    monkeypatch.setattr(file_digests, "_stat_signature", whole_seconds)
    backend = LocalBackend(tmp_path / "store.zarr")
    time.sleep(1 - time.time() % 1)  # the next lines take less than the second that now begins
    (tmp_path / "flair.nii").write_bytes(b"one")
    first = digest_files(tmp_path, ["flair.nii"], backend=backend)
    (tmp_path / "flair.nii").write_bytes(b"two")
    assert digest_files(tmp_path, ["flair.nii"], backend=backend) != first


def test_new_subjects_are_added_without_rebuilding_others(own_trial: Path, tmp_path: Path) -> None:
    first, _ = converted(own_trial, tmp_path / "store.zarr")
    names = [f"sub-0{i}" for i in range(8)]
    for seed, name in enumerate(("sub-00", "sub-06", "sub-07")):
        bids.write_subject(own_trial, name, geometry=GEOMETRY, seed=50 + seed)
        with (own_trial / "participants.tsv").open("a") as table:
            table.write(f"{name}\t40\tM\tn/a\tplacebo\tOPERA\n")
    second, builder = converted(own_trial, tmp_path / "store.zarr")
    assert builder.prepared == ["sub-00", "sub-06", "sub-07"]
    assert builder.copied == ["sub-05"]  # from the one shard that was not full
    assert [case.subject for case in second.cases] == [n for n in names if n != "sub-03"]
    assert [case.index for case in second.cases] == list(range(7))
    for case in first.cases:
        later = second.case(case.subject)
        assert later.split == case.split
        assert (later.row == case.row) == (case.subject != "sub-05")
    fresh, _ = converted(own_trial, tmp_path / "fresh.zarr")
    assert fresh.table.inputs == second.table.inputs
    for case in fresh.cases:  # copied or preprocessed, in any shard: equal voxels
        one, other = fresh.read(case.index), second.read(case.index)
        for name, block in vars(one).items():
            np.testing.assert_array_equal(block, getattr(other, name))


def test_removed_subject_leaves_no_data_and_fixed_subject_is_converted(
    own_trial: Path, tmp_path: Path
) -> None:
    converted(own_trial, tmp_path / "store.zarr")
    for folder in own_trial.rglob("sub-01"):
        shutil.rmtree(folder)
    table = own_trial / "participants.tsv"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if not row.startswith("sub-01")))
    bids.write_volume(
        bids.path_of(own_trial, "sub-03", "w048", "flair"),
        bids.head(GEOMETRY.shape, 77),
        GEOMETRY,
    )
    store, builder = converted(own_trial, tmp_path / "store.zarr")
    assert builder.prepared == ["sub-03"]
    assert [case.subject for case in store.cases] == ["sub-02", "sub-03", "sub-04", "sub-05"]
    assert store.table.excluded == ()
    assert not [name for name, content in tree(store.path).items() if b"sub-01" in content]
    assert list(verify(store, own_trial)) == []


def test_moved_trial_keeps_the_bytes_of_its_shards(own_trial: Path, tmp_path: Path) -> None:
    store, _ = converted(own_trial, tmp_path / "store.zarr")
    (exclusion,) = store.table.excluded
    assert exclusion.path == str(bids.path_of(own_trial, "sub-03", "w048", "flair"))
    before = tree(store.path / "shards")
    moved = own_trial.rename(tmp_path / "moved")
    again, builder = converted(moved, store.path)
    assert (builder.prepared, again.table.bids) == ([], str(moved))
    assert again.table.excluded[0].path.startswith(str(moved))
    assert tree(store.path / "shards") == before


def test_a_store_records_the_settings_and_the_description_of_its_trial(
    own_trial: Path, tmp_path: Path
) -> None:
    layout = TrialLayout(arm_names={"IFN": "avonex"}, trial_column="study")
    settings = replace(SETTINGS, layout=layout, percentiles=(2.0, 98.5), brain_height=0.5)
    description = {"Name": "A trial", "SimulatedWith": {"seed": 1}}
    (own_trial / "dataset_description.json").write_text(json.dumps(description))
    store, _ = converted(own_trial, tmp_path / "store.zarr", settings=settings)
    own_trial.rename(tmp_path / "moved")
    assert open_store(store.path).settings == settings
    assert open_store(store.path).table.trial == TrialDescription("A trial", simulated=True)


def test_new_shard_size_copies_cases_without_preprocessing(own_trial: Path, tmp_path: Path) -> None:
    converted(own_trial, tmp_path / "store.zarr")
    _, builder = converted(
        own_trial, tmp_path / "store.zarr", settings=replace(SETTINGS, cases_per_shard=5)
    )
    assert (builder.prepared, len(builder.copied)) == ([], 5)
    fresh = tmp_path / "fresh.zarr"
    converted(own_trial, fresh, settings=replace(SETTINGS, cases_per_shard=5))
    assert_same_bytes(tmp_path / "store.zarr", fresh)


def test_missing_record_or_array_file_is_rebuilt(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "store.zarr")
    whole = tree(store.path)
    for name in (
        f"{store.cases[0].row.shard}/flair/c/0/0/0/0/0",
        f"{store.cases[0].row.shard}.json",
    ):
        (store.path / "shards" / name).unlink()
        with pytest.raises(StoreError, match="only missing shards are built"):
            open_store(store.path)
        _, builder = converted(trial, store.path)
        assert builder.prepared == ["sub-01", "sub-02"]
        assert tree(store.path) == whole


def test_altered_record_is_rebuilt(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "store.zarr")
    whole = tree(store.path)
    record = store.path / f"shards/{store.cases[0].row.shard}.json"
    record.write_text(record.read_text().replace('"age": 30', '"age": 31'))
    _, builder = converted(trial, store.path)
    assert builder.prepared == ["sub-01", "sub-02"]
    assert tree(store.path) == whole


def test_shards_of_a_killed_conversion_are_reused_after_a_subject_joins(
    own_trial: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        kill_at_step(patch, 25)  # two shards of three are finished
        converted(own_trial, tmp_path / "store.zarr")
    assert sum(p.suffix == ".json" for p in (tmp_path / "store.zarr/shards").iterdir()) == 2
    bids.write_subject(own_trial, "sub-00", geometry=GEOMETRY, seed=50)
    store, builder = converted(own_trial, tmp_path / "store.zarr")
    assert builder.prepared == ["sub-00", "sub-05"]
    assert len(store.cases) + len(store.table.excluded) == 6


def test_second_concurrent_conversion_is_refused(trial: Path, tmp_path: Path) -> None:
    def convert_meanwhile(tasks: Sequence[ShardTask]) -> Iterator[int]:
        with pytest.raises(StorageError, match="expected no other conversion, got one that is"):
            converted(trial, tmp_path / "store.zarr")
        yield from map(build_shard, tasks)

    plan = plan_conversion(
        trial, tmp_path / "store.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0
    )
    assert len(convert(plan, build=convert_meanwhile).cases) == 4


def test_verify_names_each_changed_or_missing_file(own_trial: Path, tmp_path: Path) -> None:
    store, _ = converted(own_trial, tmp_path / "store.zarr")
    assert list(verify(store, own_trial)) == []
    shard = store.cases[0].row.shard
    corrupted = [
        store.path / f"shards/{shard}/masks/c/0/0/0/0/0/0",
        store.path / f"shards/{store.cases[-1].row.shard}.json",
        bids.path_of(own_trial, "sub-02", "w000", "gad"),
    ]
    for path in corrupted:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    gone = bids.path_of(own_trial, "sub-01", "w000", "t2")
    gone.unlink()
    found = list(verify(store, own_trial))
    assert len(found) == 4
    for path in (*corrupted, gone):
        assert sum(str(path) in line for line in found) == 1, path
    assert any(line.startswith("sub-01: ") and "no readable file" in line for line in found)


def test_verify_detects_an_altered_case_table(trial: Path, tmp_path: Path) -> None:
    store, _ = converted(trial, tmp_path / "store.zarr")
    table = store.path / "cases.json"
    table.write_text(table.read_text().replace('"age": 31', '"age": 13'))
    (line,) = verify(open_store(store.path), trial)
    assert "cases.json: expected the table of its shards" in line


def test_file_changed_during_conversion_stops_it(own_trial: Path, tmp_path: Path) -> None:
    def change_file_late(tasks: Sequence[ShardTask]) -> Iterator[int]:
        bids.alter(bids.path_of(own_trial, "sub-05", "w000", "flair"), lambda data: data[::-1])
        yield from map(build_shard, tasks)

    plan = plan_conversion(
        own_trial, tmp_path / "store.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0
    )
    with pytest.raises(StorageError, match="expected unchanged files of sub-05"):
        convert(plan, build=change_file_late)
    assert readable_table(tmp_path / "store.zarr") is None
    assert len(converted(own_trial, tmp_path / "store.zarr")[0].cases) == 4


def test_full_disk_leaves_no_partial_store(trial: Path, tmp_path: Path) -> None:
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
        assert readable_table(disk / "store.zarr") is None
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
from tests.storage.convert.conversion import converted
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
converted(Path({trial!r}), Path({path!r}))
"""


def test_file_size_limit_error_names_the_file(trial: Path, tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[3])
    code = LIMITED.format(root=root, trial=str(trial), path=str(tmp_path / "store.zarr"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large; make room or grant access" in done.stderr.splitlines()[-1]
    assert readable_table(tmp_path / "store.zarr") is None


def test_read_only_folder_error_names_the_folder(trial: Path, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    plan = plan_conversion(trial, path, settings=SETTINGS, arms=bids.ARMS, seed=0)
    tmp_path.chmod(0o555)
    with as_nobody(tmp_path), pytest.raises(StoreError, match=r"zarr: .*got Permission denied"):
        convert(plan, build=Builder())
    tmp_path.chmod(0o755)
    assert not path.exists()
