"""The caches of all nodes that training may run on, filled before and given back after it."""

import logging
from contextlib import suppress

import ray
from ray.exceptions import RayError, RayTaskError

from lesioncast.cluster.nodes import nodes_with_resource, run_on_node
from lesioncast.cluster.ray_internals import autoscaling_coordinator
from lesioncast.training.data.node_cache import fill, read_with_ray_data, release
from lesioncast.training.data.selection import CaseSelection

logger = logging.getLogger(__name__)


def prepare_nodes(cache: CaseSelection, *, accelerator_type: str | None) -> None:
    """Fill the cache of every node that training may run on, all nodes at once."""
    here = ray.get_runtime_context().get_node_id()
    nodes = _training_nodes(accelerator_type)
    others = [node for node in nodes if node != here]
    if others:
        _pin_autoscaling_coordinator()
    filling = {node: run_on_node(node, fill, cache, read_with_ray_data) for node in others}
    if here in nodes:
        logger.info("this node: %s", fill(cache, read_with_ray_data).remark)
    for node, kept in filling.items():
        try:
            logger.info("node %s: %s", node[:8], ray.get(kept).remark)
        except RayTaskError:
            raise
        except RayError as error:  # a worker that lands there nevertheless fills its cache itself
            logger.warning("node %s was lost while its cache was filled: %s", node[:8], error)


def release_nodes(cache: CaseSelection, *, accelerator_type: str | None) -> None:
    """Give back the memory of all nodes that are still there."""
    for reference in [
        run_on_node(node, release, cache) for node in _training_nodes(accelerator_type)
    ]:
        with suppress(RayError):  # a lost node has no memory left to give back
            ray.get(reference)


def _pin_autoscaling_coordinator() -> None:
    """Have Ray's account of which node has room, which elastic training asks, on this node.

    Whoever is first to need it starts it on their own node, where it stays, for all jobs of the
    cluster. Ray Data that fills the cache of a node would be first: with that node lost, elastic
    training would wait for room for ever.
    """
    coordinator = autoscaling_coordinator()
    try:
        ray.get(coordinator.__ray_ready__.remote())
    except RayError as error:  # what an earlier job left on a node that is gone
        logger.warning("Ray's account of the nodes was lost with one of them: %s", error)
        ray.kill(coordinator)
        ray.get(autoscaling_coordinator().__ray_ready__.remote())


def _training_nodes(accelerator_type: str | None) -> list[str]:
    return nodes_with_resource(
        f"accelerator_type:{accelerator_type}" if accelerator_type else "CPU"
    )
