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
import synthetic_bids as bids
from test_storage_durable import GEOMETRY, SETTINGS, assert_same_bytes, converted, seen

from storage import open_store
from storage.build import Build, build_shard
from storage.convert import convert
from storage.place import Folder
from storage.plan import plan_conversion

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

SUBJECTS = 24  # in 12 shards
KILLS = 5
DRIVER = """
import sys
from pathlib import Path
import ray
sys.path.insert(0, {tests!r})
from test_storage_durable import SETTINGS, bids
from storage.convert import convert
from storage.plan import plan_conversion
ray.init(address={address!r}, log_to_driver=False)
convert(
    plan_conversion(Path({trial!r}), Path({path!r}), settings=SETTINGS, arms=bids.ARMS, seed=0)
)
"""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root, SUBJECTS, geometry=GEOMETRY)
    bids.path_of(root, "sub-07", "w048", "flair").write_bytes(b"")
    return root


def start(trial: Path, path: Path) -> "subprocess.Popen[bytes]":
    address = ray.get_runtime_context().gcs_address
    tests = str(Path(__file__).parent)
    code = DRIVER.format(tests=tests, address=address, trial=str(trial), path=str(path))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def files(path: Path) -> int:
    return sum(1 for _ in path.rglob("*"))


def test_a_killed_driver_goes_on_where_it_was(trial: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    table = converted(trial, whole)[0].table
    rng, wanted = random.Random(5), files(whole)
    deaths = finished = 0
    while deaths < KILLS:
        driver = start(trial, killed)
        # Anywhere from its first file to some that are new: then a moment of its own.
        target = files(killed) + rng.randint(1, wanted // KILLS)
        while driver.poll() is None and files(killed) < target:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        driver.kill()
        driver.communicate()
        deaths += driver.returncode == -signal.SIGKILL
        finished += driver.returncode == 0
        assert driver.returncode in (0, -signal.SIGKILL)
        assert seen(killed) in (None, table)
        if driver.returncode == 0:  # it was too fast: the next one is killed while it renews
            bids.alter(bids.path_of(trial, "sub-01", "w000", "flair"), lambda data: data[::-1])
            table = converted(trial, whole)[0].table
    last = start(trial, killed)
    assert last.communicate(timeout=240)[1] is not None
    assert last.returncode == 0
    assert open_store(killed).table == table
    assert_same_bytes(killed, whole)


def dying_build_shard(build: Build, deaths: Path) -> int:
    """Builds a shard in a worker that kills itself amid the files, as long as deaths are left."""
    write, left = Folder.write, [random.Random(build.shard.name).randint(0, 8)]

    def dying_write(self: Folder, name: str, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            (self.location / f"{name}.torn.partial").write_bytes(content[:7])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, content)

    for death in range(KILLS):
        try:
            (deaths / f"{death}").touch(exist_ok=False)
        except FileExistsError:
            continue
        Folder.write = dying_write  # type: ignore[method-assign]
        break
    return build_shard(build)


def test_a_killed_worker_is_replaced(trial: Path, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()

    def build(builds: Sequence[Build]) -> Iterable[int]:
        task = ray.remote(dying_build_shard).options(max_retries=KILLS)
        yield from ray.get([task.remote(build, deaths) for build in builds])

    plan = plan_conversion(
        trial, tmp_path / "killed.zarr", settings=SETTINGS, arms=bids.ARMS, seed=0
    )
    convert(plan, build=build)
    assert len(list(deaths.iterdir())) == KILLS
    converted(trial, tmp_path / "whole.zarr")
    assert_same_bytes(tmp_path / "killed.zarr", tmp_path / "whole.zarr")
