"""Jobs submitted with `ray job submit` to a cluster that runs the client's working tree."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.bids import ARMS, write_trial
from tests.support.ray_clusters import RAY, ROOT, nodes

MARK = "edited a moment ago"
PROBE = """
import json, ray
def seen():
    import platform, torch, lesioncast, storage
    return dict(mark=lesioncast.MARK, python=platform.python_version(),
        files=[module.__file__ for module in (lesioncast, storage)], stdlib=platform.__file__)
ray.init()
print('SEEN', json.dumps([seen(), ray.get(ray.remote(seen).remote())]))
"""
CONFIG = {
    "name": "tiny",
    "arms": list(ARMS),
    "simulation": {"subjects": 2, "shape": [21, 64, 64], "spacing": [3.0, 3.0, 3.0]},
    "store": {
        "slab": [3, 8, 8], "spacing": [3.0, 2.0, 2.0], "resample": False,
        "split_fractions": [0.7, 0.0, 0.3],
    },
    "unet": {
        "slices": 3, "arms": 3, "widths": [8, 16], "down_blocks": 1, "attention_stages": [],
        "groups": 4,
    },
    "pretrain": {"steps": 3, "batch_size": 4, "warmup": 1, "workers": 2, "log_every": 1},
    "finetune": {"steps": 3, "batch_size": 4, "warmup": 1, "workers": 2, "log_every": 1},
    "sampler": {"solver": "ddim", "num_steps": 2},
    "forecast": {"samples": 2, "subjects": 1},
    "evaluation": {"samples": 2, "counterfactual_subjects": 1, "bootstrap": 100},
}  # fmt: skip


@dataclass(frozen=True)
class Submitter:
    """A running cluster, and the edited copy of the tree that jobs are submitted from."""

    tree: Path
    address: str
    environment: Mapping[str, str]

    def submit(self, *entrypoint: str) -> str:
        """Submit a job, expect that it succeeds, and return its output."""
        command = [RAY, "job", "submit", "--address", self.address]
        command += ["--runtime-env", "jobs/runtime_env.yaml", "--", *entrypoint]
        done = subprocess.run(
            command,
            cwd=self.tree,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=550,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def submitter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("platform", "storage", "serve", "jobs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "platform/lesioncast/__init__.py").open("a") as package:
        package.write(f"\nMARK = {MARK!r}\n")
    with nodes() as cluster:
        cluster.head("--num-cpus=2")
        yield Submitter(tree, cluster.dashboard, cluster.environment)


@pytest.mark.slow
def test_driver_and_workers_run_the_submitted_tree(submitter: Submitter) -> None:
    output = submitter.submit("python", "-c", PROBE)
    (line,) = [line for line in output.splitlines() if line.startswith("SEEN ")]
    for seen in json.loads(line.removeprefix("SEEN ")):
        assert seen["mark"] == MARK
        assert all("/working_dir_files/_ray_pkg_" in path for path in seen["files"])
        assert seen["python"] == sys.version.split()[0]
        assert "/working_dir_files/" not in seen["stdlib"]


@pytest.mark.slow
def test_a_submitted_job_trains_with_as_many_workers_as_the_cluster_has_cpus(
    submitter: Submitter, tmp_path: Path
) -> None:
    write_trial(tmp_path / "bids", 12)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    given = f"--config {tmp_path}/tiny.yaml --store {tmp_path}/store.zarr"
    bundle = f"{given} --bundle {tmp_path}/bundle"
    commands = (  # in one submission, because each takes ten seconds to start and to be noticed
        f"convert.py {given} --bids {tmp_path}/bids",
        f"pretrain.py {given} --out {tmp_path}/runs",
        f"finetune.py {bundle} --out {tmp_path}/runs",
        f"forecast.py {bundle} --out {tmp_path}/forecasts",
        f"evaluate.py {bundle} --out {tmp_path}/evaluation",
    )
    script = " && ".join(f"python jobs/{command}" for command in commands)
    output = submitter.submit("bash", "-c", script)
    assert "pretrain: step 3/3  loss 0." in output
    assert (tmp_path / "runs/pretrain/step_000003/state.json").is_file()
    assert list((tmp_path / "forecasts").glob("sub-*/ses-w048/anat/*_probseg.nii.gz"))
    report = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert report["cases"]["test"] > 0


@pytest.mark.slow
def test_a_trial_is_simulated_by_a_submitted_job(submitter: Submitter, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    given = ["--config", str(tmp_path / "tiny.yaml"), "--bids", str(tmp_path / "bids")]
    submitter.submit("python", "jobs/simulate.py", *given)
    assert len(list((tmp_path / "bids").glob("sub-*/ses-w096/anat/*_FLAIR.nii.gz"))) == 2
