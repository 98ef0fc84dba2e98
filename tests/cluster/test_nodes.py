"""Jobs across several nodes whose head does no work, and disks that not every node mounts."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from ray.util.state import list_actors, list_nodes, list_tasks

from lesioncast.bundle.bundle import load_bundle
from lesioncast.cluster.actor_map import _FunctionActor
from lesioncast.training.checkpoint import checkpoints
from storage import StoreSettings, StoreSpec
from storage.preprocess.grid import place_slab
from tests.jobs.test_submit import CONFIG
from tests.support.bids import ARMS, Geometry, case_of, head, volume_of, write_trial
from tests.support.ray_clusters import OBJECT_STORE, ROOT, Nodes, nodes
from tests.support.store import noise, table_of, write_tiny_store

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
WORKERS = 4
WATCHING = {
    "TrainController", "SynchronizationActor", "PlacementGroupCleaner", "DatasetManager",
    "PreemptionWatcher", "_AutoscalingCoordinatorActor",
}  # fmt: skip
# Hides what lies at a path from whatever runs inside.
HIDING = 'mount -t tmpfs none "$0" && exec "$@"'
can_hide = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Start a head without CPUs and two nodes, neither of which has CPUs for all workers."""
    with nodes(PYTHONPATH=f"{ROOT}:{ROOT}/platform", OMP_NUM_THREADS="1") as nodes_of_cluster:
        nodes_of_cluster.head("--num-cpus=0")
        for name in ("a", "b"):
            nodes_of_cluster.join(name, "--num-cpus=3")
        yield nodes_of_cluster


def job(cluster: Nodes, name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return cluster.run(sys.executable, f"jobs/{name}.py", *arguments)


def places(cluster: Nodes) -> dict[str, set[str]]:
    """Return the names of the nodes where each kind of task and actor has run."""
    names = {
        node.node_id: next((n for n in ("a", "b") if n in node.resources_total), "head")
        for node in list_nodes(address=cluster.dashboard, raise_on_missing_output=False)
    }
    names_by_kind: dict[str, set[str]] = {}
    tasks = list_tasks(address=cluster.dashboard, limit=10_000)
    actors = list_actors(address=cluster.dashboard, limit=1000)
    pairs = [(task.name, task.node_id) for task in tasks if task.type == "NORMAL_TASK"]
    pairs += [(actor.class_name, actor.node_id) for actor in actors]
    for name, node in pairs:
        names_by_kind.setdefault(name, set()).add(names.get(node, "nowhere"))
    return names_by_kind


def test_a_head_without_cpus_does_no_work_and_four_workers_span_two_nodes(
    cluster: Nodes, tmp_path: Path
) -> None:
    write_trial(tmp_path / "bids", 12)
    stages = {
        name: {**CONFIG[name], "workers": WORKERS, "steps": 6} for name in ("pretrain", "finetune")
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, **stages}))
    given = ["--config", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path / "store.zarr")]
    out, bundle = ["--out", str(tmp_path / "runs")], ["--bundle", str(tmp_path / "bundle")]
    for name, arguments in (
        ("convert", ["--bids", str(tmp_path / "bids")]),
        ("pretrain", out),
        ("finetune", [*out, *bundle]),
        ("evaluate", [*bundle, "--out", str(tmp_path / "evaluation")]),
    ):
        done = job(cluster, name, *given, *arguments)
        assert done.returncode == 0, done.stdout
    load_bundle(tmp_path / "bundle")
    scored = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert scored["cases"]["test"] > 0

    found = places(cluster)
    assert found["RayTrainWorker"] == {"a", "b"}
    assert found["fill"] == {"a", "b"}
    for name in ("build_shard", _FunctionActor.__name__):
        assert found[name] <= {"a", "b"}, name
    # What is left to the head is to watch over the others and their room, which takes no CPU.
    watching = {name for name, where in found.items() if "head" in where}
    assert watching <= WATCHING, found


def write_large_store(path: Path) -> int:
    """Write a store of noise, three times a node's object store; return its bytes."""
    settings = StoreSettings((3, 128, 128), (3.0, 2.0, 2.0), resample=False)
    spec = StoreSpec(ARMS, settings.slab, settings.spacing)
    grid = place_slab(volume_of(head((9, 18, 14), 0), Geometry()), settings=settings, brain=None)
    blocks = noise(1, spec)
    cases = 3 * OBJECT_STORE // blocks["flair"].nbytes
    rng = np.random.default_rng(0)
    blocks = noise(cases, spec) | {
        "flair": rng.uniform(-1, 1, (cases, *blocks["flair"].shape[1:])).astype(np.float16),
        "present": np.ones((cases, 3, 4), bool),
    }
    table = [case_of(grid, index=index, subject=f"sub-{index:04d}") for index in range(cases)]
    write_tiny_store(path, table_of(spec, table), blocks)
    return blocks["flair"].nbytes


def test_a_store_thrice_as_large_as_an_object_store_goes_through_it(
    cluster: Nodes, tmp_path: Path
) -> None:
    """What Ray Data brought to the nodes trains to the weights of what each batch reads itself."""
    assert write_large_store(tmp_path / "store.zarr") >= 2.9 * OBJECT_STORE
    short = {"steps": 2, "workers": 2, "batch_size": 4}
    config = {
        **CONFIG,
        "store": {"slab": [3, 128, 128], "spacing": [3.0, 2.0, 2.0], "resample": False},
        "pretrain": {**CONFIG["pretrain"], **short},
        "finetune": {**CONFIG["finetune"], **short},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    given = ["--config", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path / "store.zarr")]
    weights = []
    for name, limit in (("kept", []), ("streamed", ["--set", "finetune.cache_gib=0"])):
        out = ["--out", str(tmp_path / name), "--bundle", str(tmp_path / f"bundle-{name}"), *limit]
        for stage in ("pretrain", "finetune"):
            done = job(cluster, stage, *given, *(out if stage == "finetune" else out[:2]))
            assert done.returncode == 0, done.stdout
        weights.append(checkpoints(tmp_path / name / "finetune")[-1].tensors("ema"))
    kept, streamed = weights
    assert kept.keys() == streamed.keys()
    assert all(kept[key].equal(streamed[key]) for key in kept)


@pytest.mark.skipif(not can_hide, reason="NO MOUNT NAMESPACES HERE: unshared disks were not tried")
def test_a_disk_that_not_every_node_mounts_is_refused_by_name(
    cluster: Nodes, tmp_path: Path
) -> None:
    write_trial(tmp_path / "bids", 2)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    own = tmp_path / "own"
    own.mkdir()
    alone = cluster.join(
        "c", "--num-cpus=1", inside=["unshare", "--mount", "sh", "-c", HIDING, str(own)]
    )
    given = ["--config", str(tmp_path / "tiny.yaml"), "--bids", str(tmp_path / "bids")]
    try:
        done = job(cluster, "convert", *given, "--store", str(own / "store.zarr"))
    finally:
        alone.kill()
    assert done.returncode == 1, done.stdout
    assert f"{own}/store.zarr: expected the same folder on all nodes, got another" in done.stdout
