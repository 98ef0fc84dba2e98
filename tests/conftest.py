"""Fixtures shared by every test: one small Ray cluster for the whole run."""

import os
from collections.abc import Iterator

import pytest

from lesioncast.start import RaySettings, cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with its own temporary directory, started once for all tests."""
    address = os.environ.pop("RAY_ADDRESS", None)
    with cluster(RaySettings(num_cpus=4, object_store_mb=300)):
        yield
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
