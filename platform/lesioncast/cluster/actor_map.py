"""One function over many items on Ray actors, in order, with a progress line."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)
LOG_INTERVAL_S = 5.0


class _FunctionActor:
    """A Ray actor's state: what `build` made, once (the model's weights, an open store)."""

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
    """`build()(item)` for each item, in the items' order, on up to `workers` actors.

    `build` runs once an actor. A lost actor is started again and its item repeated, so the
    function must depend on the item alone. Ray must be connected.
    """
    actor: Any = ray.remote(_FunctionActor).options(
        num_cpus=1, num_gpus=gpus_per_worker, max_restarts=2, max_task_retries=2
    )
    actors = [actor.remote(build) for _ in range(min(workers, len(items)))]
    underway: deque[Any] = deque()
    for place, item in enumerate(items):
        # Two items an actor: one at work, one waiting, so that none idles between items.
        if len(underway) == 2 * len(actors):
            yield ray.get(underway.popleft())
        underway.append(actors[place % len(actors)].apply.remote(item))
    while underway:
        yield ray.get(underway.popleft())


def with_progress(
    results: Iterable[Result],
    *,
    total: int,
    label: str,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Result]:
    """`results` as they come, logging how many of `total` are done, the rate and the time left."""
    start = said = clock()
    for done, result in enumerate(results, 1):
        yield result
        now = clock()
        if now - said >= LOG_INTERVAL_S or done == total:
            rate = done / max(now - start, 1e-9)
            left = (total - done) / rate
            log.info("%s %d/%d, %.1f/s, %.0f s left", label, done, total, rate, left)
            said = now
