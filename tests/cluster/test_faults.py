"""Training on a cluster that loses workers, nodes and its controller: `make faults`.

Every run has to end in the weights and the log of losses of an undisturbed run.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from os import kill
from pathlib import Path
from signal import SIGKILL

import pytest
import yaml
from ray.util.state import list_nodes
from safetensors.torch import load_file

from lesioncast.training.checkpoint import checkpoints
from lesioncast.training.progress import Metrics, read_metrics
from tests.support.bids import ARMS
from tests.support.forecast import SLAB, SPEC, write_store
from tests.support.ray_clusters import RAY, ROOT, Node, Nodes, nodes

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
STEPS, SAVED_EVERY, LOGGED_EVERY = 600, 100, 20
WORKERS = 4
CONFIG = {
    "name": "tiny",
    "arms": list(ARMS),
    "simulation": {"subjects": 2, "shape": [21, 64, 64], "spacing": [3.0, 3.0, 3.0]},
    "store": {"slab": list(SLAB), "spacing": list(SPEC.spacing), "resample": False},
    "unet": {
        "slices": SLAB[0], "arms": 3, "widths": [16, 32], "down_blocks": 1, "attention_stages": [],
        "groups": 4,
    },
    "pretrain": {
        "steps": STEPS, "batch_size": 4, "warmup": 10, "workers": WORKERS, "max_failures": 3,
        "checkpoint_every": SAVED_EVERY, "log_every": LOGGED_EVERY,
    },
    "finetune": {"steps": 1},
}  # fmt: skip
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}:{ROOT}/platform",
    "OMP_NUM_THREADS": "1",
    # So that a lost node is missed after seconds, as the tests have no minutes to wait.
    "RAY_health_check_period_ms": "1000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


@dataclass
class Trial:
    """A cluster of one idle head and three nodes of two CPUs, one more than training needs."""

    cluster: Nodes
    folder: Path
    alive: dict[str, Node]
    joined: int = 0

    def join(self) -> None:
        """Bring the nodes back to three."""
        while len(self.alive) < 3:
            name = f"node{self.joined}"
            self.alive[name] = self.cluster.join(name, "--num-cpus=2")
            self.joined += 1
        self.wait_for_nodes()

    def wait_for_nodes(self) -> None:
        """Wait until Ray sees exactly the living nodes."""
        until = time.monotonic() + 90
        while set(self.node_ids()) != set(self.alive):
            assert time.monotonic() < until, f"{self.node_ids()} are not {list(self.alive)}"
            time.sleep(0.5)

    def node_ids(self) -> dict[str, str]:
        """Return Ray's id of each living node."""
        living = list_nodes(
            address=self.cluster.dashboard,
            filters=[("state", "=", "ALIVE")],
            raise_on_missing_output=False,  # dead nodes count as missing
        )
        return {
            next(n for n in node.resources_total if re.fullmatch(r"node\d+", n)): node.node_id
            for node in living
            if not node.is_head_node
        }

    def command(self, run: str, *overrides: str) -> list[str]:
        """Return the command that trains stage 1 into the folder `run`."""
        given = [f"--set=pretrain.{override}" for override in overrides]
        return [
            sys.executable, "jobs/pretrain.py", "--config", str(self.folder / "tiny.yaml"),
            "--store", str(self.folder / "store.zarr"), "--out", str(self.folder / run), *given,
        ]  # fmt: skip

    def log(self, run: str) -> list[Metrics]:
        """Return the metrics that the run has logged."""
        return read_metrics(self.folder / run / "pretrain")

    def workers(self) -> int:
        """Count the current workers of Ray Train."""
        nodes = self.alive.values()
        return sum(len(node.processes("ray::RayTrainWorker")) for node in nodes)

    def victim(self, title: str = "ray::RayTrainWorker") -> tuple[str, int]:
        """Return a process of the cluster, with its node."""
        for name, node in {**self.alive, "head": self.cluster.started[0]}.items():
            if processes := node.processes(title):
                return name, processes[0]
        raise AssertionError(f"no process {title}")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("faults")
    write_store(folder / "store.zarr", folder / "bids", test=2, train=10)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with nodes(**ENVIRONMENT, LESIONCAST_CACHE=str(folder / "cache")) as cluster:
        cluster.head("--num-cpus=0")
        site = Trial(cluster, folder, {})
        site.join()
        done = cluster.run(*site.command("whole"))
        assert done.returncode == 0, done.stdout
        yield site


def disturbed_run(trial: Trial, run: str, strike: Callable[[], None], *overrides: str) -> str:
    """Disturb a run between its steps; return its output and the checkpoints it had before."""
    trial.join()
    driver = trial.cluster.start(*trial.command(run, *overrides))
    wait_while_alive(driver, lambda: log_reached(trial, run, SAVED_EVERY + SAVED_EVERY // 2))
    strike()
    return output_of(driver)


def log_reached(trial: Trial, run: str, step: float) -> bool:
    """Return True once the log has reached the step."""
    return any(line["step"] >= step for line in trial.log(run))


def wait_while_alive(driver: "subprocess.Popen[str]", holds: Callable[[], bool]) -> None:
    """Wait until the condition holds while the driver lives."""
    until = time.monotonic() + 180
    while not holds():
        assert driver.poll() is None, driver.communicate()[0]
        if time.monotonic() > until:
            driver.kill()
            raise AssertionError(f"what was waited for never came: {driver.communicate()[0]}")
        time.sleep(0.02)


def output_of(driver: "subprocess.Popen[str]") -> str:
    """Return the driver's output and how it ended."""
    output, _ = driver.communicate(timeout=300)
    return f"{output}\nexit code {driver.returncode}"


def assert_as_if_nothing_had_happened(trial: Trial, run: str) -> None:
    """Check for the same losses at the same steps, and the same weights to the last bit."""
    whole, found = (
        [(line["step"], line["loss"]) for line in trial.log(each)] for each in ("whole", run)
    )
    assert found == whole
    for name in ("weights", "ema", "exp_avg", "exp_avg_sq"):
        left, right = (
            load_file(trial.folder / each / f"pretrain/step_{STEPS:06d}/{name}.safetensors")
            for each in ("whole", run)
        )
        assert all(left[key].equal(right[key]) for key in left), name


def resumed_at(output: str) -> list[int]:
    """Return the steps at which workers began, in order.

    Nodes of one machine share a folder of logs, so that each line arrives once a node.
    """
    steps = re.findall(r"pretrain: step (\d+) of \d+", output)
    return [int(step) for step, _ in groupby(steps)]


def test_a_run_repeats(trial: Trial) -> None:
    done = trial.cluster.run(*trial.command("again"))
    assert done.returncode == 0, done.stdout
    assert_as_if_nothing_had_happened(trial, "again")


def test_a_killed_worker_is_replaced_and_the_run_goes_on_from_its_last_checkpoint(
    trial: Trial,
) -> None:
    saved: list[int] = []

    def strike() -> None:
        _, pid = trial.victim()
        kill(pid, SIGKILL)
        saved.append(checkpoints(trial.folder / "worker/pretrain")[-1].step)

    output = disturbed_run(trial, "worker", strike)
    assert output.endswith("exit code 0"), output
    assert resumed_at(output) == [0, *saved], output
    assert_as_if_nothing_had_happened(trial, "worker")


def test_a_lost_node_is_done_without(trial: Trial) -> None:
    def strike() -> None:
        name, _ = trial.victim()
        trial.alive.pop(name).kill()

    output = disturbed_run(trial, "node", strike)
    assert output.endswith("exit code 0"), output
    assert resumed_at(output)[-1] >= SAVED_EVERY
    assert_as_if_nothing_had_happened(trial, "node")


def test_training_shrinks_with_the_cluster_and_grows_again(trial: Trial) -> None:
    """Other workers sum gradients in another order, so losses agree, but not to the last bit."""
    longer = "batch_size=64", "steps=900"  # so that nodes come and go within the run
    alone = trial.cluster.run(*trial.command("alone", *longer, "workers=0"))
    assert alone.returncode == 0, alone.stdout
    trial.join()
    driver = trial.cluster.start(*trial.command("elastic", *longer, "min_workers=2"))
    wait_while_alive(driver, lambda: log_reached(trial, "elastic", SAVED_EVERY + SAVED_EVERY // 2))
    assert trial.workers() == WORKERS
    for name in list(trial.alive)[:2]:
        trial.alive.pop(name).kill()
    struck_at = trial.log("elastic")[-1]["step"]
    wait_while_alive(
        driver, lambda: trial.workers() == 2 and log_reached(trial, "elastic", struck_at + 1)
    )
    trial.join()
    wait_while_alive(driver, lambda: trial.workers() == WORKERS)
    grown_at = trial.log("elastic")[-1]["step"]
    output = output_of(driver)
    assert output.endswith("exit code 0"), output
    assert resumed_at(output)[-1] >= SAVED_EVERY
    assert SAVED_EVERY <= struck_at < grown_at
    found, whole = (dict(_losses(trial, run)) for run in ("elastic", "alone"))
    assert found == pytest.approx(whole, rel=0.02)


def kill_controller(trial: Trial) -> None:
    kill(trial.victim("ray::TrainController")[1], SIGKILL)


def test_a_lost_controller_is_replaced(trial: Trial) -> None:
    output = disturbed_run(trial, "controller", lambda: kill_controller(trial))
    assert output.endswith("exit code 0"), output
    assert "pretrain: lost Ray Train's controller" in output
    assert resumed_at(output)[-1] >= SAVED_EVERY
    assert_as_if_nothing_had_happened(trial, "controller")


def test_the_same_command_goes_on_where_a_lost_controller_ended_the_job(trial: Trial) -> None:
    output = disturbed_run(trial, "command", lambda: kill_controller(trial), "max_failures=0")
    assert output.endswith("exit code 1"), output
    assert "run the same command again: it resumes from the last checkpoint" in output
    done = trial.cluster.run(*trial.command("command", "max_failures=0"))
    assert done.returncode == 0, done.stdout
    assert resumed_at(done.stdout)[0] >= SAVED_EVERY
    assert_as_if_nothing_had_happened(trial, "command")


def test_a_node_that_is_to_go_leaves_a_checkpoint_first(trial: Trial) -> None:
    notice = 4  # seconds

    def strike() -> None:
        name, _ = trial.victim()
        drain = [RAY, "drain-node", f"--address={trial.cluster.address}"]
        drain += [f"--node-id={trial.node_ids()[name]}", "--reason-message=taken away"]
        drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", f"--deadline-remaining-seconds={notice}"]
        environment = {**trial.cluster.environment}
        done = subprocess.run(drain, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(notice)
        trial.alive.pop(name).kill()

    output = disturbed_run(trial, "preempted", strike, "max_failures=0")
    assert output.endswith("exit code 0"), output
    (saved,) = set(
        map(int, re.findall(r"will be preempted; saving checkpoint at step (\d+)", output))
    )
    assert resumed_at(output)[-1] >= saved > SAVED_EVERY, output
    whole, found = (dict(_losses(trial, each)) for each in ("whole", "preempted"))
    after = saved + 2 * LOGGED_EVERY  # the checkpoint began a line of its own
    assert {k: v for k, v in found.items() if k > after} == {
        k: v for k, v in whole.items() if k > after
    }


def _losses(trial: Trial, run: str) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in trial.log(run)]
