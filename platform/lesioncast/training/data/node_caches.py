"""Fill the caches of all nodes that training may run on, and release them afterwards."""

import logging
from contextlib import suppress

import ray
from ray.exceptions import RayError, RayTaskError

from lesioncast.cluster.nodes import nodes_with_resource, run_on_node
from lesioncast.cluster.ray_internals import autoscaling_coordinator
from lesioncast.training.data.node_cache import fill, read_with_ray_data, release
from lesioncast.training.data.selection import CaseSelection

logger = logging.getLogger(__name__)


def prepare_nodes(selection: CaseSelection, *, accelerator_type: str | None) -> None:
    """Fill the cache of every node that training may run on, all nodes at the same time."""
    this_node = ray.get_runtime_context().get_node_id()
    nodes = _training_nodes(accelerator_type)
    others = [node for node in nodes if node != this_node]
    if others:
        _pin_autoscaling_coordinator()
    filling = {node: run_on_node(node, fill, selection, read_with_ray_data) for node in others}
    if this_node in nodes:
        logger.info("this node: %s", fill(selection, read_with_ray_data).description)
    for node, reference in filling.items():
        try:
            logger.info("node %s: %s", node[:8], ray.get(reference).description)
        except RayTaskError:  # an error of the task itself, such as a full disk
            raise
        except RayError as error:
            # The node is gone or unreachable. A worker that is placed there later fills the cache.
            logger.warning("lost node %s while filling its cache: %s", node[:8], error)


def release_nodes(selection: CaseSelection, *, accelerator_type: str | None) -> None:
    """Release the memory of the caches on all nodes that are still alive."""
    for reference in [
        run_on_node(node, release, selection) for node in _training_nodes(accelerator_type)
    ]:
        with suppress(RayError):  # a lost node has no memory to release
            ray.get(reference)


def _pin_autoscaling_coordinator() -> None:
    """Start Ray's autoscaling coordinator on this node.

    Elastic training asks the coordinator for free capacity.
    """
    # The first process of the cluster that needs the coordinator starts it on its own node, where
    # it stays for all jobs. Without this call that process would be Ray Data, filling the cache of
    # some node. If that node were lost, elastic training would wait for capacity for ever.
    coordinator = autoscaling_coordinator()
    try:
        ray.get(coordinator.__ray_ready__.remote())
    except RayError as error:
        # An earlier job started it on a node that is gone by now.
        logger.warning("lost Ray's autoscaling coordinator with its node; restarting: %s", error)
        ray.kill(coordinator)
        ray.get(autoscaling_coordinator().__ray_ready__.remote())


def _training_nodes(accelerator_type: str | None) -> list[str]:
    """Return the ids of the nodes with the given GPU type, or with CPUs."""
    return nodes_with_resource(
        f"accelerator_type:{accelerator_type}" if accelerator_type else "CPU"
    )
