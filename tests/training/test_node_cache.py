"""A node's cache goes where it fits, and no batch depends on where it is."""

import fcntl
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.diffusion.settings.networks import CONDITION
from lesioncast.imaging.channels import parse_channels
from lesioncast.training.checkpoint import Checkpoint
from lesioncast.training.data import cache_location, node_cache
from lesioncast.training.data.cache_location import cache_roots, memory_available
from lesioncast.training.data.dataset import Batch, CaseDataset
from lesioncast.training.data.node_cache import fill, open_cases, read_in_process, release
from lesioncast.training.data.selection import CaseSelection, training_cases
from lesioncast.training.experiment import Experiment, finetune_stage, pretrain_stage
from lesioncast.training.progress import read_metrics
from lesioncast.training.randomness import condition_dropout
from lesioncast.training.settings import DropoutRates
from lesioncast.training.trainer import train
from storage import StorageError, Store, StoreError
from tests.support.forecast import SPEC, write_store
from tests.support.training import MODEL, SETTINGS

GIB = 2**30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("placement")
    return write_store(folder / "store.zarr", folder / "bids", test=2, train=8)


@pytest.fixture
def cache(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaseSelection:
    """Return a selection with two roots, the first of which counts as memory; neither is full."""
    monkeypatch.setattr(cache_location, "MEMORY", tmp_path / "memory")
    roots = (tmp_path / "memory" / "lesioncast", tmp_path / "disk")
    return replace(training_cases(store, SPEC.arms), roots=roots)


def set_available_bytes(monkeypatch: pytest.MonkeyPatch, sizes: dict[Path, int]) -> None:
    monkeypatch.setattr(cache_location, "available_bytes", lambda root: sizes[root])


def dropout_batch(cases: CaseDataset, rows: list[int], condition: tuple[str, ...] | None) -> Batch:
    channels = len(condition or CONDITION)
    dropout = condition_dropout(
        1,
        2,
        batch_size=len(rows),
        post_baseline=np.zeros(channels, bool),
        rates=DropoutRates(arm=0.3, condition=0.1, channel=0.2),
    )
    parsed = None if condition is None else parse_channels(condition)
    return cases.batch(np.array(rows), dropout, null_arm=3, condition=parsed)


@pytest.mark.parametrize("condition", [None, CONDITION, ("w000/flair", "w000/t2")])
def test_streamed_batches_equal_cached_ones_to_the_last_bit(
    cache: CaseSelection, condition: tuple[str, ...] | None
) -> None:
    if condition is None:
        cache = replace(cache, sessions=("w096",))
    cached = open_cases(cache, read_in_process)
    streamed = open_cases(replace(cache, limit=cache.size - 1), read_in_process)
    assert (cached.streamed, streamed.streamed) == (False, True)
    assert streamed.spatial_shape == cached.spatial_shape
    assert cached.active.any()
    for name in ("present", "arm", "active"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(cached, name))
    for rows in ([0, 1, 2], [7, 3, 7, 0, 3]):  # a batch that spans epochs repeats cases
        one, other = (dropout_batch(cases, rows, condition) for cases in (cached, streamed))
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.arm, other.arm)
        assert (one.condition is None) == (condition is None)
        assert one.condition is None or torch.equal(one.condition, other.condition)


def test_store_converted_again_during_the_run_is_refused(cache: CaseSelection) -> None:
    streamed = replace(cache, limit=0)
    for selection in (cache, streamed):  # the indices may now be those of other patients
        with pytest.raises(StoreError, match="it was converted anew meanwhile; run the same"):
            fill(replace(selection, inputs="before"), read_in_process)
        fill(selection, read_in_process)
    assert not open_cases(
        replace(cache, inputs="before"), read_in_process
    ).streamed  # cached before
    with pytest.raises(StoreError, match="it was converted anew meanwhile; run the same"):
        open_cases(replace(streamed, inputs="before"), read_in_process)


def test_streamed_run_gives_the_weights_of_a_cached_run(
    cache: CaseSelection, tmp_path: Path
) -> None:
    unet = replace(MODEL.unet, slices=SPEC.slab[0], arms=len(SPEC.arms))
    model = replace(MODEL, arms=SPEC.arms, unet=unet)

    def both_stages(name: str, gib: float) -> tuple[Checkpoint, list[dict[str, float]]]:
        settings = replace(SETTINGS, cache_gib=gib)
        experiment = Experiment(model, cache, tmp_path / name, seed=3)
        last = train(
            finetune_stage(settings, experiment, train(pretrain_stage(settings, experiment)))
        )
        return last, read_metrics(last.folder.parent)

    (cached, curve), (streamed, same) = both_stages("cached", 1.0), both_stages("streamed", 0.0)
    actual = streamed.tensors("weights")
    for name, tensor in cached.tensors("weights").items():
        assert torch.equal(actual[name], tensor), name
    assert [line["loss"] for line in same] == [line["loss"] for line in curve]


def test_memory_is_preferred_to_disk_and_disk_to_the_store(
    cache: CaseSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk = cache.roots
    for name, sizes, expected in (
        ("fits", (cache.size, cache.size), memory),
        ("large", (cache.size - 1, cache.size), disk),
        ("huge", (cache.size - 1, cache.size - 1), None),
    ):
        set_available_bytes(monkeypatch, dict(zip(cache.roots, sizes, strict=True)))
        cached = fill(replace(cache, digest=name), read_in_process)
        assert cached.streamed == (expected is None)
        assert cached.folder.parent == (expected or disk)
        where = f"cached in {expected}" if expected else "streamed from the store"
        gib = f"{cache.size / GIB:.2f} GiB"
        assert cached.description.startswith(f"{gib} of cases {where}")
        assert cached.description.endswith(f"in {memory}, {sizes[1] / GIB:.2f} GiB in {disk}")
    assert {path.name for path in cached.folder.iterdir()} == {
        "active.npy", "arm.npy", "present.npy",
    }  # fmt: skip


def test_one_session_takes_a_third_of_three_sessions(cache: CaseSelection) -> None:
    alone = replace(cache, sessions=("w096",))
    assert 3 * alone.size == cache.size
    assert alone.name != cache.name
    cases = open_cases(alone, read_in_process)
    assert cases.flair.shape[:2] == (8, 1)
    whole = open_cases(cache, read_in_process)
    np.testing.assert_array_equal(cases.flair[:], whole.flair[:, 2:])


def test_memory_is_released_and_caches_of_killed_runs_are_removed(cache: CaseSelection) -> None:
    memory = cache.roots[0]
    killed, filling = replace(cache, digest="killed"), replace(cache, digest="filling")
    left = fill(killed, read_in_process).folder
    assert left.parent == memory
    partial = memory / f"{filling.name}.partial"
    partial.mkdir()
    with (cache.roots[1] / f"{filling.name}.lock").open("w") as another_process:
        fcntl.flock(another_process, fcntl.LOCK_EX)
        cases = open_cases(cache, read_in_process)
        assert not left.exists()
        assert partial.is_dir()
    release(cache)
    assert not (memory / cache.name).exists()
    assert cases.flair[:].any()  # an open cache stays readable


def test_cache_on_disk_is_removed_a_month_after_its_last_use(
    cache: CaseSelection, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = replace(cache, roots=cache.roots[1:])
    unused, used, streamed, locked = (
        replace(on_disk, digest=name) for name in ("unused", "used", "streamed", "locked")
    )
    streamed = replace(streamed, limit=0)
    folders = [fill(each, read_in_process).folder for each in (unused, used, streamed, locked)]
    month_ago = time.time() - node_cache.KEEP_UNUSED_S - 60
    for folder in folders:
        os.utime(folder, (month_ago, month_ago))
    open_cases(used, read_in_process)
    with (on_disk.roots[0] / f"{locked.name}.lock").open("w") as another_process:
        fcntl.flock(another_process, fcntl.LOCK_EX)
        fill(on_disk, read_in_process)
    assert [folder.is_dir() for folder in folders] == [False, True, False, True]


def test_available_bytes_are_half_of_the_free_memory_within_the_container_limit(
    tmp_path: Path,
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8 kB\nMemAvailable:    4000 kB\n")
    assert memory_available(meminfo, tmp_path) == 4_096_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_available(meminfo, tmp_path) == 4_096_000
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 900000\nshmem 500000\n")
    assert memory_available(meminfo, tmp_path) == 1_500_000
    assert (
        0 < cache_location.available_bytes(cache_location.MEMORY / "x") <= 0.5 * memory_available()
    )


def test_full_disk_raises_an_error(cache: CaseSelection, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_cache.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        fill(cache, read_in_process)
    assert not (cache.roots[0] / cache.name).exists()


def test_cache_of_patients_is_closed_to_other_users(cache: CaseSelection) -> None:
    memory, disk = cache.roots
    memory.mkdir(mode=0o755, parents=True)  # an earlier version left it open to readers
    for selection, root in ((cache, memory), (replace(cache, limit=0), disk)):
        assert fill(selection, read_in_process).folder.parent == root
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(
    ("trap", "sentence"),
    [
        ("link", "expected a folder, got a link; remove it"),
        ("writable", "only its owner can write to, got mode 0777; .* chmod 700"),
        ("foreign", f"expected a folder of user {os.geteuid()}, got one of user 65534"),
    ],
)
def test_cache_folder_that_another_user_prepared_is_refused(
    cache: CaseSelection, tmp_path: Path, place: str, trap: str, sentence: str
) -> None:
    root = cache.roots[place == "disk"]
    target = tmp_path / "target" if trap == "link" else root
    target.mkdir(parents=True)
    root.parent.mkdir(exist_ok=True)
    if trap == "link":
        root.symlink_to(target)
    elif trap == "writable":
        root.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(root, 65534, -1)
    else:
        pytest.skip("only root can make a folder of another user")
    for use in (open_cases, fill):
        with pytest.raises(StorageError, match=sentence):
            use(cache, read_in_process)
    assert list(target.iterdir()) == []


def test_environment_variable_names_the_only_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESIONCAST_CACHE", "/scratch/cases")
    assert cache_roots() == (Path(f"/scratch/cases/lesioncast-{os.geteuid()}"),)
    monkeypatch.delenv("LESIONCAST_CACHE")
    assert len(cache_roots()) == 1 + cache_location.MEMORY.is_dir()
