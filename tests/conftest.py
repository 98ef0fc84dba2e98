"""Fixtures shared by tests: a small Ray cluster for each test process, a client of the service."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # which import torch and the whole service: most tests need neither
    from serve.client import Client
    from tests.support.service import Service

# Set before anything imports numpy or torch. The networks of the tests are tiny, and threads that
# wait for each other took three times the processor time of one thread on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that two test processes end at about the same time."""
    marks = ("slow", "ray")
    slow = {item.path for item in items if any(map(item.get_closest_marker, marks))}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start a local Ray cluster with its own temporary directory, once for all tests.

    It asks for a token, whatever the environment says.
    """
    from lesioncast.cluster import connection

    names = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    given = {name: os.environ.pop(name) for name in names if name in os.environ}
    with connection.ray_cluster(connection.RaySettings(num_cpus=4, object_store_mb=300)):
        yield
    os.environ.update(given)


@pytest.fixture
def client(service: "Service") -> Iterator["Client"]:
    """Return a client of the demo-mode `service` of the test's own file."""
    from serve.client import Client

    with Client(service.url) as client:
        yield client
