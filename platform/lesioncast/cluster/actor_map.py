"""Map a function over many items on Ray actors, in order, and log the progress."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)
LOG_INTERVAL_S = 5.0


class _FunctionActor:
    """Ray actor that holds the function that `build` returned, such as a loaded model."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._function = build()

    def apply(self, item: Any) -> Any:
        return self._function(item)


def ordered_actor_map(
    build: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    *,
    workers: int,
    gpus_per_worker: float = 0.0,
) -> Iterator[Result]:
    """Yield `build()(item)` for each item, in the items' order, from up to `workers` actors.

    `build` runs once on each actor. A lost actor is started again and repeats its item, so the
    result must depend on the item alone. Ray must be connected.
    """
    import ray  # it takes a second, which work in this process alone need not wait for

    actor: Any = ray.remote(_FunctionActor).options(
        num_cpus=1, num_gpus=gpus_per_worker, max_restarts=2, max_task_retries=2
    )
    actors = [actor.remote(build) for _ in range(min(workers, len(items)))]
    pending: deque[Any] = deque()
    for position, item in enumerate(items):
        # Two items for each actor, one at work and one waiting, so that no actor idles between
        # items. Not more, so that finished results do not fill the object store.
        if len(pending) == 2 * len(actors):
            yield ray.get(pending.popleft())
        pending.append(actors[position % len(actors)].apply.remote(item))
    while pending:
        yield ray.get(pending.popleft())


def with_progress(
    results: Iterable[Result],
    *,
    total: int,
    label: str,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Result]:
    """Yield `results` as they come, and log the number done, the rate and the time left."""
    start = last_logged = clock()
    for done, result in enumerate(results, 1):
        yield result
        now = clock()
        if now - last_logged >= LOG_INTERVAL_S or done == total:
            rate = done / max(now - start, 1e-9)
            left = (total - done) / rate
            logger.info("%s %d/%d, %.1f/s, %.0f s left", label, done, total, rate, left)
            last_logged = now
