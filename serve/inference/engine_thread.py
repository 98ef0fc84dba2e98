"""A thread that runs sampling engines for coroutines, so that the event loop stays free."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias, cast

from torch import Tensor

from lesioncast.diffusion.continuous_batching import ContinuousBatcher, SampleRequest
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.members import MemberDraw
from serve.inference.reports import EngineStoppedError, StepStats
from serve.log import logger


class EngineKey(NamedTuple):
    """What the samples of one engine share: the member of the bundle and the sampler settings."""

    member: int
    sampler: SamplerConfig


OnStep = Callable[[StepStats], None]
EngineFactory = Callable[[EngineKey], ContinuousBatcher[SampleCondition]]
SampleFuture: TypeAlias = "asyncio.Future[Tensor]"


class EngineThread:
    """Run engines in a thread, and give each sample to the coroutine that asked for it.

    Samples of one member with the same sampler settings share an engine, which exists while it is
    busy. Engines take their steps in turn. All access to engines happens in the thread, between two
    steps: coroutines put callables into an inbox.
    """

    def __init__(self, make_engine: EngineFactory, on_step: OnStep) -> None:
        self._make_engine, self._on_step = make_engine, on_step
        self._engines: dict[EngineKey, ContinuousBatcher[SampleCondition]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._pending: set[SampleFuture] = set()
        self._alive = True
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Return False once a step has failed, after which nothing can be drawn."""
        return self._alive

    async def draw(
        self,
        job_id: Hashable,
        draws: Sequence[MemberDraw],
        seeds: Sequence[int],
        sampler: SamplerConfig,
    ) -> list[Tensor]:
        """Draw one sample x for each of `draws` and its seed. Raises EngineStoppedError.

        If the coroutine is cancelled, the slots of its samples are freed. `job_id` is what slots
        are shared fairly by.
        """
        loop = asyncio.get_running_loop()
        futures: list[SampleFuture] = [loop.create_future() for _ in draws]
        requests: dict[EngineKey, list[SampleRequest[SampleCondition]]] = {}
        for future, draw, seed in zip(futures, draws, seeds, strict=True):
            request = SampleRequest(job_id, future, draw.condition, seed)
            requests.setdefault(EngineKey(draw.member, sampler), []).append(request)
        self._inbox.put(lambda: self._submit(requests, futures))
        try:
            return list(await asyncio.gather(*futures))
        except asyncio.CancelledError:
            self._inbox.put(lambda: self._cancel(set(futures)))
            raise

    def _submit(
        self,
        requests: Mapping[EngineKey, Sequence[SampleRequest[SampleCondition]]],
        futures: Sequence[SampleFuture],
    ) -> None:
        self._pending |= set(futures)
        if not self._alive:
            return  # `_fail_forever` fails the futures
        for key, of_engine in requests.items():
            if key not in self._engines:
                self._engines[key] = self._make_engine(key)
            self._engines[key].add(of_engine)

    def _cancel(self, futures: set[SampleFuture]) -> None:
        for engine in self._engines.values():
            engine.cancel(lambda request: request.name in futures)
        self._pending -= futures

    def _run(self) -> None:
        """Process the inbox and step each engine, until a step fails."""
        try:
            while True:
                self._drain_inbox()
                for engine in self._engines.values():
                    self._step(engine)
                self._engines = {
                    key: engine for key, engine in self._engines.items() if engine.busy
                }
        except Exception as error:
            logger.exception("engine.stopped")
            self._engines.clear()
            self._alive = False
            self._fail_forever(f"a step failed, another replica is needed: {error}")

    def _fail_forever(self, reason: str) -> None:
        """Fail every pending and future draw after the engine has stopped. Never returns."""
        while True:
            for future in self._pending:
                _resolve_threadsafe(future, future.set_exception, EngineStoppedError(reason))
            self._pending.clear()
            self._inbox.get()()

    def _step(self, engine: ContinuousBatcher[SampleCondition]) -> None:
        """Take one step, report its statistics and resolve the futures of finished samples."""
        began = time.monotonic()
        finished = engine.step()
        engines = self._engines.values()
        self._on_step(
            StepStats(
                running=sum(each.running for each in engines),
                waiting=sum(each.waiting for each in engines),
                seconds=time.monotonic() - began,
                rows=engine.rows,
                finished=tuple(request.condition.arm for request, _ in finished),
            )
        )
        for request, x in finished:
            future = cast("SampleFuture", request.name)
            self._pending.remove(future)
            _resolve_threadsafe(future, future.set_result, x)

    def _drain_inbox(self) -> None:
        """Process everything in the inbox; block only if no engine has anything to draw."""
        if not self._engines:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()


def _resolve_threadsafe(
    future: SampleFuture, resolve: Callable[..., object], *args: object
) -> None:
    """Resolve a future from another thread, unless the future is done or its loop is closed."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        # Whether the future is done may be asked only in its own loop.
        future.get_loop().call_soon_threadsafe(lambda: None if future.done() else resolve(*args))
