"""Fixtures shared by tests: a small Ray cluster for each test process, a client of the service."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # which import torch and the whole service: most tests need neither
    from serve.client import Client
    from tests.support.service import Service

# Set before anything imports numpy or torch. The networks of the tests are tiny, and threads that
# wait for each other took three times the processor time of one thread on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The files that take longest, in descending order.
LONGEST = (
    "serve/test_ray_serve.py",
    "jobs/test_submit.py",
    "benchmarks/test_benchmarks.py",
    "serve/page/test_page.py",
    "jobs/test_forecast_and_evaluate.py",
    "jobs/test_training_jobs.py",
    "serve/test_openapi_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that all test processes end at about the same time."""
    longest = [Path(__file__).parent / name for name in LONGEST]
    marks = ("slow", "ray")
    slow = {item.path for item in items if any(map(item.get_closest_marker, marks))}

    def place(item: pytest.Item) -> int:
        if item.path in longest:
            return longest.index(item.path)
        return len(longest) + (item.path not in slow)

    items.sort(key=place)


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
