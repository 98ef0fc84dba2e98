"""Drivers and workers of a conversion that get a real SIGKILL, and the same command afterwards."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import ray

from storage import open_store
from storage.backends.local import LocalBackend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from tests.storage.test_incremental_conversion import (
    GEOMETRY,
    SETTINGS,
    assert_same_bytes,
    converted,
    seen,
)
from tests.support import bids

pytestmark = pytest.mark.slow

SUBJECTS = 16  # in 8 shards
KILLS = 5
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.storage.test_incremental_conversion import SETTINGS, Builder, bids
from storage.convert.convert import build_on_ray, convert
from storage.convert.plan import plan_conversion
build = Builder()
if address := {address!r}:
    import ray
    ray.init(address=address, log_to_driver=False)
    build = build_on_ray
convert(
    plan_conversion(Path({trial!r}), Path({path!r}), settings=SETTINGS, arms=bids.ARMS, seed=0),
    build=build,
)
"""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root, SUBJECTS, geometry=GEOMETRY)
    bids.path_of(root, "sub-07", "w048", "flair").write_bytes(b"")
    return root


def start(trial: Path, path: Path, address: str) -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[2])
    code = DRIVER.format(root=root, address=address, trial=str(trial), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def files(path: Path) -> int:
    return sum(1 for _ in path.rglob("*"))


def kill_at_random(trial: Path, folder: Path, *, kills: int, address: str = "") -> None:
    """Conversions that are killed after a random number of files, and one that is not."""
    whole, killed = folder / "whole.zarr", folder / "killed.zarr"
    table = converted(trial, whole)[0].table
    rng, wanted = random.Random(5), files(whole)
    for _ in range(kills):
        driver = start(trial, killed, address)
        target = min(files(killed) + rng.randint(1, wanted // kills), wanted - 2)
        while driver.poll() is None and files(killed) < target:
            time.sleep(0.001)
        driver.kill()
        _, said = driver.communicate()
        assert driver.returncode == -signal.SIGKILL, said.decode()
        assert seen(killed) in (None, table)
    last = start(trial, killed, address)
    _, said = last.communicate(timeout=240)
    assert last.returncode == 0, said.decode()
    assert open_store(killed).table == table
    assert_same_bytes(killed, whole)


def test_a_killed_conversion_goes_on_where_it_was(trial: Path, tmp_path: Path) -> None:
    kill_at_random(trial, tmp_path, kills=KILLS)


@pytest.mark.ray
def test_a_killed_driver_goes_on_where_its_workers_were(
    trial: Path, tmp_path: Path, ray_cluster: None
) -> None:
    address = ray.get_runtime_context().gcs_address
    kill_at_random(trial, tmp_path, kills=2, address=address)


def dying_build_shard(build: ShardTask, deaths: Path) -> int:
    """Builds a shard in a worker that kills itself amid the files, as long as deaths are left."""
    write, left = LocalBackend.write, [random.Random(build.shard.name).randint(0, 8)]

    def dying_write(self: LocalBackend, name: str, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            torn = self.location / f"{name}.torn.partial"
            torn.parent.mkdir(parents=True, exist_ok=True)
            torn.write_bytes(content[:7])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, content)

    for death in range(KILLS):
        try:
            (deaths / f"{death}").touch(exist_ok=False)
        except FileExistsError:
            continue
        LocalBackend.write = dying_write  # type: ignore[method-assign]
        break
    return build_shard(build)


@pytest.mark.ray
def test_a_killed_worker_is_replaced(trial: Path, tmp_path: Path, ray_cluster: None) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers have no tests

    def build(builds: Sequence[ShardTask]) -> Iterable[int]:
        task = ray.remote(dying_build_shard).options(max_retries=KILLS)
        yield from ray.get([task.remote(build, deaths) for build in builds])

    plan = plan_conversion(
        trial, tmp_path / "killed.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0
    )
    convert(plan, build=build)
    assert len(list(deaths.iterdir())) == KILLS
    converted(trial, tmp_path / "whole.zarr")
    assert_same_bytes(tmp_path / "killed.zarr", tmp_path / "whole.zarr")
