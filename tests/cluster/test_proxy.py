"""The service behind HAProxy in Serve's throughput mode, as clusters with traffic run it."""

from collections.abc import Iterator
from os import kill
from signal import SIGKILL

import httpx2
import pytest

from serve.client import ApiError, Client
from tests.cluster.test_head import KEY, ReadinessProbe, deploy
from tests.support.forecast import write_bundle, write_store
from tests.support.ray_clusters import ROOT, Nodes, free_ports, nodes
from tests.support.service import key_line, wait_for_result, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.slow]
INGRESS = "ray::ServeReplica:lesioncast:Ingress"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nodes, str]]:
    """Start a cluster of one node with the service, and return both."""
    folder = tmp_path_factory.mktemp("proxy")
    write_store(folder / "store.zarr", folder / "bids", test=4)
    write_bundle(folder / "bundle", num_steps=30)
    (folder / "keys.txt").write_text(key_line("tester", KEY))
    metrics, stats, port = free_ports(3)
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT}/platform",
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
    }
    with nodes(**environment) as cluster:
        cluster.head("--num-cpus=2")
        url = f"http://127.0.0.1:{port}"
        deploy(cluster, folder, url, ingress_replicas=2)
        assert "haproxy_" in httpx2.get(f"http://127.0.0.1:{metrics}/metrics").text
        yield cluster, url


def test_a_lost_ingress_behind_haproxy_costs_no_request(site: tuple[Nodes, str]) -> None:
    cluster, url = site
    (head,) = cluster.started
    with Client(url, key=KEY, timeout=60) as client:
        undisturbed = wait_for_result(client, client.create_forecast("sub-02", samples=20))
        job = client.create_forecast("sub-02", samples=20)
        before = head.processes(INGRESS)
        assert len(before) == 2
        with ReadinessProbe(url) as probe:
            kill(before[0], SIGKILL)
            wait_until(lambda: set(head.processes(INGRESS)) - set(before) != set(), seconds=120)
            assert [status["state"] for status in client.stream_events(job)][-1] == "succeeded"
        assert client.result(job) == undisturbed
        assert set(probe.answers) == {200}, probe.answers
    with Client(url, timeout=60) as nobody, pytest.raises(ApiError, match="401"):
        nobody.status(job)
