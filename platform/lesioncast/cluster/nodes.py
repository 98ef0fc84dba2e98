"""The nodes of a cluster: which may work, what runs on one, and whether all see one disk."""

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

# A node may list a folder of a network disk as it was half a minute ago.
NFS_ATTRIBUTE_CACHE_S = 35.0

Names = Mapping[str, Sequence[str]]  # of what lies in a folder, by the folder


def nodes_with_resource(resource: str = "CPU") -> list[str]:
    """The nodes that are there and have some of a resource; a head with num_cpus=0 has no CPU."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [n["NodeID"] for n in nodes if n["Alive"] and n["Resources"].get(resource)]


def run_on_node(node: str, function: Callable[..., Any], *arguments: Any) -> "ray.ObjectRef[Any]":
    """A task on that node and no other, which takes no CPU: it mostly waits."""
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy=pinned)
    reference: ray.ObjectRef[Any] = task.remote(*arguments)
    return reference


def check_shared_paths(*, reads: Iterable[Location] = (), writes: Iterable[Location] = ()) -> None:
    """Raises StorageError where a node that may work sees another folder at a path than this one.

    Folders to read have to show the same names everywhere, folders to write also a file that is put
    there meanwhile. URLs mean the same everywhere.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in nodes_with_resource() if node != here]
    if not nodes:
        return
    outputs = [path for path in writes if isinstance(path, Path)]
    inputs = [path for path in reads if isinstance(path, Path)]
    with ExitStack() as stack:
        for path in outputs:
            stack.enter_context(_marked(path))
        expected = {str(path): list_folder(path) for path in (*inputs, *outputs)}
        found = {node: run_on_node(node, find_mismatched_folder, expected) for node in nodes}
        for node, reference in found.items():
            if (other := ray.get(reference)) is not None:
                raise StorageError(
                    f"{other}: expected the same folder on all nodes, got another or none on node "
                    f"{node[:8]}; name a folder that every node mounts, or a store's URL"
                )


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".shared-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def find_mismatched_folder(expected: Names) -> str | None:
    """The first folder that is not here or shows other names than expected, if any."""
    for folder, names in expected.items():
        until = time.monotonic() + NFS_ATTRIBUTE_CACHE_S
        while list_folder(Path(folder)) != names:
            if time.monotonic() > until or not Path(folder).is_dir():
                return folder
            time.sleep(1)
    return None


def list_folder(folder: Path) -> Sequence[str]:
    """What lies in a folder, sorted; nothing where there is none."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208
