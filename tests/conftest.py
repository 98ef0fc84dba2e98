"""Fixtures shared by tests: one small Ray cluster for the whole run, a client of their service."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from lesioncast.cluster import connection
from serve.client import Client

if TYPE_CHECKING:  # which imports the whole service: most tests need none
    from tests.support.service import Service


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with its own temporary directory, started once for all tests."""
    address = os.environ.pop("RAY_ADDRESS", None)
    with connection.ray_cluster(connection.RaySettings(num_cpus=4, object_store_mb=300)):
        yield
    if address is not None:
        os.environ["RAY_ADDRESS"] = address


@pytest.fixture
def client(service: "Service") -> Iterator[Client]:
    """Of the demo-mode `service` of the test's own file."""
    with Client(service.url) as client:
        yield client
