"""Ray's private modules that lesioncast uses, all imported here.

They fit the Ray release in `RAY_VERSION`. A test compares it with the installed release; look at
each import again before raising it.
"""

from typing import Any

from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution import train_fn_utils

__all__ = [
    "RAY_VERSION",
    "PlacementGroupCleanerCallback",
    "autoscaling_coordinator",
    "train_context",
    "train_fn_utils",
]

RAY_VERSION = "2.60.0"


def autoscaling_coordinator() -> Any:
    """Return the cluster's autoscaling coordinator, started on this node if none runs yet."""
    # Ray Data takes seconds to import, and training workers do not need it.
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    start: Any = get_or_create_autoscaling_coordinator
    return start()
