"""Nodes of the cluster: list them, run a task on one, check that all share a folder."""

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from storage import Location, StorageError

# NFS clients cache a folder's listing, so a node may see it as it was half a minute ago.
NFS_ATTRIBUTE_CACHE_S = 35.0

Names = Mapping[str, Sequence[str]]  # names in a folder, by the folder's path


def nodes_with_resource(resource: str = "CPU") -> list[str]:
    """Return the ids of the live nodes that have a resource; a head with num_cpus=0 has no CPU."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get(resource)]


def run_on_node(node: str, function: Callable[..., Any], *arguments: Any) -> "ray.ObjectRef[Any]":
    """Start a task on one node. It reserves no CPU, because such tasks mostly wait."""
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy=pinned)
    reference: ray.ObjectRef[Any] = task.remote(*arguments)
    return reference


def check_shared_paths(*, reads: Iterable[Location] = (), writes: Iterable[Location] = ()) -> None:
    """Raise StorageError if a node with CPUs does not share the folders that a job uses.

    A folder to read has to list the same names on all nodes. A folder to write has to show, in
    addition, a file that this node creates there during the check. URLs need no check.
    """
    this_node = ray.get_runtime_context().get_node_id()
    nodes = [node for node in nodes_with_resource() if node != this_node]
    if not nodes:
        return
    outputs = [path for path in writes if isinstance(path, Path)]
    inputs = [path for path in reads if isinstance(path, Path)]
    with ExitStack() as stack:
        for path in outputs:
            stack.enter_context(_marker_file(path))
        expected = {str(path): list_folder(path) for path in (*inputs, *outputs)}
        # All nodes look at the same time, because each may have to wait for its cache.
        references = {node: run_on_node(node, find_mismatched_folder, expected) for node in nodes}
        for node, reference in references.items():
            if (mismatched := ray.get(reference)) is not None:
                raise StorageError(
                    f"{mismatched}: expected the same folder on all nodes, got another or none on "
                    f"node {node[:8]}; name a folder that every node mounts, or a store's URL"
                )


@contextmanager
def _marker_file(folder: Path) -> Iterator[None]:
    """Keep a file with a unique name in the folder for the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".shared-{uuid.uuid4().hex}"
    marker.touch()
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def find_mismatched_folder(expected: Names) -> str | None:
    """Return the first folder that is missing on this node or lists other names, if any."""
    for folder, names in expected.items():
        deadline = time.monotonic() + NFS_ATTRIBUTE_CACHE_S
        while list_folder(Path(folder)) != names:
            if time.monotonic() > deadline or not Path(folder).is_dir():
                return folder
            time.sleep(1)
    return None


def list_folder(folder: Path) -> Sequence[str]:
    """Return the names in a folder, sorted; an empty list if there is no such folder."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208
