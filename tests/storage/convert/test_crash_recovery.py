"""Kill conversion drivers and workers with SIGKILL, then run the same command again."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import ray

from storage import open_store
from storage.backends.local import LocalBackend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from tests.storage.convert.conversion import (
    GEOMETRY,
    SETTINGS,
    assert_same_bytes,
    converted,
    readable_table,
    run_conversion,
)
from tests.support import bids

pytestmark = pytest.mark.slow

SUBJECTS = 16  # in 8 shards
KILLS = 5
WORKER_KILLS = 3  # each costs the start of another Ray worker


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trial with one subject that is excluded."""
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root, SUBJECTS, geometry=GEOMETRY)
    bids.path_of(root, "sub-07", "w048", "flair").write_bytes(b"")
    return root


def start(trial: Path, path: Path, address: str) -> BaseProcess:
    """Start a conversion in a process of its own; `address` is that of a Ray cluster, if any."""
    # A fork server imports the code once. Ray reads its environment when it is imported, so its
    # drivers are fresh interpreters.
    context = multiprocessing.get_context("spawn" if address else "forkserver")
    context.set_forkserver_preload(["tests.storage.convert.conversion"])
    process = context.Process(target=run_conversion, args=(trial, path, address))
    process.start()
    return process


def count_files(path: Path) -> int:
    """Return the number of files and folders below a path."""
    return sum(1 for _ in path.rglob("*"))


def kill_at_random(trial: Path, folder: Path, *, kills: int, address: str = "") -> None:
    """Kill conversions after a random number of files, then let one finish and compare stores."""
    whole, killed = folder / "whole.zarr", folder / "killed.zarr"
    table = converted(trial, whole)[0].table
    rng, n_files = random.Random(5), count_files(whole)
    for _ in range(kills):
        driver = start(trial, killed, address)
        target = min(count_files(killed) + rng.randint(1, n_files // kills), n_files - 2)
        while driver.is_alive() and count_files(killed) < target:
            time.sleep(0.001)
        driver.kill()
        driver.join()
        assert driver.exitcode == -signal.SIGKILL
        assert readable_table(killed) in (None, table)
    last = start(trial, killed, address)
    last.join(timeout=240)
    assert last.exitcode == 0
    assert open_store(killed).table == table
    assert_same_bytes(killed, whole)


def test_killed_conversion_resumes_to_the_same_bytes(trial: Path, tmp_path: Path) -> None:
    kill_at_random(trial, tmp_path, kills=KILLS)


@pytest.mark.ray
def test_killed_ray_driver_resumes_to_the_same_bytes(
    trial: Path, tmp_path: Path, ray_cluster: None
) -> None:
    address = ray.get_runtime_context().gcs_address
    kill_at_random(trial, tmp_path, kills=2, address=address)


def dying_build_shard(task: ShardTask, deaths: Path) -> int:
    """Build a shard in a worker that kills itself while it writes.

    Each death claims one file in `deaths`, so that at most `WORKER_KILLS` workers die.
    """
    write, writes_left = LocalBackend.write, [random.Random(task.shard.name).randint(0, 8)]

    def dying_write(self: LocalBackend, name: str, content: bytes) -> None:
        writes_left[0] -= 1
        if writes_left[0] < 0:
            torn = self.location / f"{name}.torn.partial"
            torn.parent.mkdir(parents=True, exist_ok=True)
            torn.write_bytes(content[:7])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, content)

    for death in range(WORKER_KILLS):
        try:
            (deaths / f"{death}").touch(exist_ok=False)
        except FileExistsError:
            continue
        LocalBackend.write = dying_write  # type: ignore[method-assign]
        break
    return build_shard(task)


@pytest.mark.ray
def test_shards_of_killed_ray_workers_are_built_again(
    trial: Path, tmp_path: Path, ray_cluster: None
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

    def build(tasks: Sequence[ShardTask]) -> Iterable[int]:
        remote_build = ray.remote(dying_build_shard).options(max_retries=WORKER_KILLS)
        yield from ray.get([remote_build.remote(task, deaths) for task in tasks])

    plan = plan_conversion(
        trial, tmp_path / "killed.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0
    )
    convert(plan, build=build)
    assert len(list(deaths.iterdir())) == WORKER_KILLS
    converted(trial, tmp_path / "whole.zarr")
    assert_same_bytes(tmp_path / "killed.zarr", tmp_path / "whole.zarr")
