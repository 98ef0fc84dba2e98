"""The service keeps serving while the head of its cluster is lost: GCS fault tolerance on Redis.

Head and worker node have their own addresses, in network namespaces, as separate machines have.
"""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import kill
from pathlib import Path
from shutil import which
from signal import SIGKILL
from threading import Event, Thread

import httpx2
import pytest

from serve.client import Client
from tests.support.forecast import write_bundle, write_store
from tests.support.ray_clusters import ROOT, Node, Nodes, nodes
from tests.support.service import key_line, wait_for_result, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
BRIDGE, NET = "lcbridge", "10.77.7"
HEAD, NODE, REDIS = (f"{NET}.{number}" for number in (1, 2, 254))
SAMPLES = 60
KEY = "a-key-of-a-test-that-nobody-else-knows"
can_separate = (
    which("redis-server") is not None
    and which("ip") is not None
    and subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0
)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def in_namespace(host: str) -> list[str]:
    """Return the prefix that runs a command in the network namespace of `host`."""
    return ["ip", "netns", "exec", f"lc{host.replace('.', '-')}"]


@contextmanager
def network(*hosts: str) -> Iterator[None]:
    """Create a network namespace for each host, all on one bridge with this machine."""
    names = [in_namespace(host)[-1] for host in hosts]
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{REDIS}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, (host, name) in enumerate(zip(hosts, names, strict=True)):
            cable = f"lcveth{number}"
            ip("netns", "add", name)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", cable, "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{host}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


@contextmanager
def redis(folder: Path) -> Iterator[None]:
    """Run a Redis server that both nodes reach."""
    command = ["redis-server", "--bind", REDIS, "--protected-mode", "no", "--dir", str(folder)]
    process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@dataclass
class Site:
    """A head without CPUs and a node that serves."""

    cluster: Nodes
    head: Node
    node: Node
    url: str = f"http://{NODE}:8000"

    def restart_head(self) -> None:
        """Start the head again after it was killed."""
        self.head = start_head(self.cluster)

    def replicas(self) -> list[int]:
        """Return the ids of the sampler's processes on the node."""
        return self.node.processes("ray::ServeReplica:lesioncast:SamplerDeployment")


def start_head(cluster: Nodes) -> Node:
    return cluster.head(
        "--num-cpus=0", f"--node-ip-address={HEAD}", "--dashboard-host=0.0.0.0",
        # It refuses to start where it sees a process that belongs to a cluster at its address.
        host=HEAD, inside=[*in_namespace(HEAD), "unshare", "--pid", "--fork", "--mount-proc"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not can_separate:
        pytest.skip("no network namespaces or no Redis: the loss of a head was not tested")
    folder = tmp_path_factory.mktemp("head")
    write_store(folder / "store.zarr", folder / "bids", test=4)
    write_bundle(folder / "bundle", num_steps=60)
    (folder / "keys.txt").write_text(key_line("tester", KEY))
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT}/platform",
        "OMP_NUM_THREADS": "1",
        "RAY_REDIS_ADDRESS": f"{REDIS}:6379",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # as KubeRay sets it; 60 by default
    }
    with network(HEAD, NODE), redis(folder), nodes(**environment) as cluster:
        head = start_head(cluster)
        node = cluster.join(
            "node", "--num-cpus=2", f"--node-ip-address={NODE}", inside=in_namespace(NODE)
        )
        service_site = Site(cluster, head, node)
        deploy(cluster, folder, service_site.url)
        yield service_site


def deploy(cluster: Nodes, folder: Path, url: str, **settings: object) -> None:
    """Deploy the service as its operator does: send a configuration to the head."""
    application = {
        "name": "lesioncast",
        "import_path": "serve.app:build",
        "route_prefix": "/",
        "args": {
            "bundle": str(folder / "bundle"),
            "store": str(folder / "store.zarr"),
            "artifacts": str(folder / "out"),
            "keys": str(folder / "keys.txt"),
            "seeds_per_block": 2,
            "max_samples": SAMPLES,
            **settings,
        },
    }
    config = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": int(url.rpartition(":")[2])},
        "applications": [application],
    }
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/serve/applications/",
        data=json.dumps(config).encode(),
        headers={"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=60):
        wait_until(lambda: health(url) == 200, seconds=180)


def health(url: str) -> int:
    try:
        return httpx2.get(f"{url}/v2/health/ready", timeout=10).status_code
    except httpx2.HTTPError:
        return 0


@dataclass
class ReadinessProbe:
    """A thread that probes ten times a second whether the service is ready."""

    url: str
    answers: list[int] = field(default_factory=list)
    over: Event = field(default_factory=Event)

    def __enter__(self) -> "ReadinessProbe":
        self._thread = Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.over.wait(0.1):
            self.answers.append(health(self.url))


def test_the_service_answers_while_the_head_is_lost_and_after_its_return(site: Site) -> None:
    with Client(site.url, key=KEY, timeout=60) as client:
        undisturbed = wait_for_result(client, client.create_forecast("sub-02", samples=SAMPLES))
        assert not site.head.processes("ray::ServeReplica"), "the head has work to do"
        job = client.create_forecast("sub-02", samples=SAMPLES)
        wait_until(lambda: client.status(job)["progress"]["done"] > 0, seconds=60)
        with ReadinessProbe(site.url) as probe:
            site.head.kill()
            assert client.status(job)["state"] == "running"
            while_gone = client.create_forecast("sub-02", samples=SAMPLES, seed=1)
            assert wait_for_result(client, job) == undisturbed
            assert client.status(while_gone)["state"] in ("accepted", "running", "succeeded")
            site.restart_head()
            assert wait_for_result(client, while_gone)["seed"] == 1
        assert set(probe.answers) == {200}, probe.answers
        assert len(probe.answers) > 20
        # The controller, which died with the head, is back as well: it replaces what is lost.
        before = site.replicas()
        for pid in before:
            kill(pid, SIGKILL)
        wait_until(lambda: set(site.replicas()) - set(before) != set(), seconds=120)
        job = client.create_forecast("sub-02", samples=SAMPLES)
        assert wait_for_result(client, job) == undisturbed
