"""The caches of all nodes that training may run on, filled before and given back after it."""

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lesioncast.training.cache import CaseCache
from lesioncast.training.ingest import fill, read_with_ray_data, release

logger = logging.getLogger(__name__)


def prepare_nodes(cache: CaseCache, *, accelerator_type: str | None) -> None:
    """Fill the cache of every node that training may run on, all nodes at once."""
    here = ray.get_runtime_context().get_node_id()
    nodes = _training_nodes(accelerator_type)
    elsewhere = {node: _on(node, fill, cache, read_with_ray_data) for node in nodes if node != here}
    if here in nodes:
        logger.info("this node: %s", fill(cache, read_with_ray_data).remark)
    for node, kept in elsewhere.items():
        logger.info("node %s: %s", node[:8], ray.get(kept).remark)


def release_nodes(cache: CaseCache, *, accelerator_type: str | None) -> None:
    """Give back the memory of all nodes that are still there."""
    ray.get([_on(node, release, cache) for node in _training_nodes(accelerator_type)])


def _training_nodes(accelerator_type: str | None) -> list[str]:
    needed = f"accelerator_type:{accelerator_type}" if accelerator_type else "CPU"
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [n["NodeID"] for n in nodes if n["Alive"] and n["Resources"].get(needed)]


def _on(node: str, function: Callable[..., Any], *arguments: Any) -> "ray.ObjectRef[Any]":
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    # No CPU of its own: it only waits for Ray Data's tasks and writes what they read.
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy=pinned)
    reference: ray.ObjectRef[Any] = task.remote(*arguments)
    return reference
