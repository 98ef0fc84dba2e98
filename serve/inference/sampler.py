"""One sampler replica: the engine in a thread of its own, so that the event loop stays free."""

import asyncio
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from lesioncast.bundle.bundle import load_bundle
from lesioncast.diffusion.continuous_batching import ContinuousBatcher, SampleRequest
from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.forecasting.runtime import check_compatible, device_of, store_reader
from lesioncast.forecasting.sampling import ModelInput, SampleBatch
from lesioncast.imaging.lesions import count_lesions
from serve.api.schemas import PatientRef
from serve.log import logger
from serve.settings import ServiceSettings
from serve.uploads import store_for_patient
from storage import open_store

ENCODING_CACHE_SIZE = 16  # hints kept


class StepStats(NamedTuple):
    """One that was made: slots in use and samples without one after it, its seconds, the rows of
    its forward pass, and the arm of each sample that it finished."""

    running: int
    waiting: int
    seconds: float
    rows: int
    finished: tuple[int, ...]


OnStep = Callable[[StepStats], None]
EngineFactory = Callable[[SamplerConfig], ContinuousBatcher[SampleCondition]]
SampleFuture: TypeAlias = "asyncio.Future[Tensor]"


class EngineStoppedError(RuntimeError):
    """A step failed: nothing can be drawn here any more, and another replica is needed."""


class EngineThread:
    """Runs engines for coroutines. One that is cancelled frees the slots of its samples.

    Samples that are drawn alike share an engine, which is there while it is busy; engines take
    their steps in turn. Everything that touches them happens in the thread, between two steps.
    """

    def __init__(self, make: EngineFactory, observe: OnStep) -> None:
        self._make, self._observe = make, observe
        self._engines: dict[SamplerConfig, ContinuousBatcher[SampleCondition]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._awaited: set[SampleFuture] = set()
        self._alive = True
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    @property
    def alive(self) -> bool:
        """False once a step has failed: then nothing can be drawn here any more."""
        return self._alive

    async def draw(
        self,
        request: Hashable,
        told: Sequence[SampleCondition],
        seeds: Sequence[int],
        sampler: SamplerConfig,
    ) -> list[Tensor]:
        """One x for each of `told` and `seeds`. Raises EngineStoppedError."""
        loop = asyncio.get_running_loop()
        futures: list[SampleFuture] = [loop.create_future() for _ in told]
        wanted = [
            SampleRequest(request, future, each, seed)
            for future, each, seed in zip(futures, told, seeds, strict=True)
        ]
        self._inbox.put(lambda: self._submit(sampler, wanted, futures))
        try:
            return list(await asyncio.gather(*futures))
        except asyncio.CancelledError:
            self._inbox.put(lambda: self._cancel(set(futures)))
            raise

    def _submit(
        self,
        sampler: SamplerConfig,
        wanted: Sequence[SampleRequest[SampleCondition]],
        futures: Sequence[SampleFuture],
    ) -> None:
        self._awaited |= set(futures)
        if not self._alive:
            return  # `_refuse` tells them
        if sampler not in self._engines:
            self._engines[sampler] = self._make(sampler)
        self._engines[sampler].add(wanted)

    def _cancel(self, futures: set[SampleFuture]) -> None:
        for engine in self._engines.values():
            engine.cancel(lambda each: each.name in futures)
        self._awaited -= futures

    def _run(self) -> None:
        try:
            while True:
                self._drain_inbox()
                for engine in self._engines.values():
                    self._step(engine)
                self._engines = {key: each for key, each in self._engines.items() if each.busy}
        except Exception as error:
            logger.exception("the engine has stopped")
            self._engines.clear()
            self._alive = False
            self._fail_forever(f"a step failed, another replica is needed: {error}")

    def _fail_forever(self, why: str) -> None:
        """Never returns: every draw gets an answer, however late it came into the inbox."""
        while True:
            for future in self._awaited:
                _resolve_threadsafe(future, future.set_exception, EngineStoppedError(why))
            self._awaited.clear()
            self._inbox.get()()

    def _step(self, engine: ContinuousBatcher[SampleCondition]) -> None:
        began = time.monotonic()
        finished = engine.step()
        engines = self._engines.values()
        self._observe(
            StepStats(
                running=sum(each.running for each in engines),
                waiting=sum(each.waiting for each in engines),
                seconds=time.monotonic() - began,
                rows=engine.rows,
                finished=tuple(each.condition.arm for each, _ in finished),
            )
        )
        for each, x in finished:
            future = cast("SampleFuture", each.name)
            self._awaited.remove(future)
            _resolve_threadsafe(future, future.set_result, x)

    def _drain_inbox(self) -> None:
        """Waits only where there is nothing to draw."""
        if not self._engines:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()


def _resolve_threadsafe(future: SampleFuture, act: Callable[..., object], *given: object) -> None:
    """Acts on a future from another thread, unless it has ended by then, or its loop."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(lambda: None if future.done() else act(*given))


class SamplerWorker:
    """Draws blocks of samples of patients with the bundle's networks.

    On the CPU one thread draws: replicas are the parallelism, and a mask must not depend on the
    number of threads.
    """

    def __init__(self, settings: ServiceSettings, observe: OnStep) -> None:
        device = device_of(settings.gpus_per_sampler)
        if device == "cpu":
            torch.set_num_threads(1)
        bundle, store = load_bundle(settings.bundle, device=device), open_store(settings.store)
        check_compatible(bundle, store)
        self._device, self._sampler, self._model = device, bundle.config.sampler, bundle.model
        self._store, self._artifacts = store, settings.artifacts
        self._hints: OrderedDict[PatientRef, PatientEncoding] = OrderedDict()
        self._reading = asyncio.Lock()
        make = partial(
            bundle.model.batcher,
            spatial_shape=bundle.config.slab,
            device=torch.device(device),
            slots=settings.slots,
        )
        self._thread = EngineThread(make, observe)

    @property
    def alive(self) -> bool:
        """Whether it can still draw."""
        return self._thread.alive

    async def draw(
        self,
        job: str,
        patient: PatientRef,
        arm: int,
        seeds: Sequence[int],
        changes: Mapping[str, Any],
    ) -> SampleBatch:
        """A patient's samples under an arm, for a job that shares slots fairly with others.

        `changes` are those to the bundle's sampler.
        """
        hint = await self._patient_encoding(patient)
        sampler = replace(self._sampler, **changes)
        told = self._model.sample_conditions(hint, arm, seeds)
        x = await self._thread.draw(job, told, seeds, sampler)
        return await asyncio.to_thread(self._to_drawn_samples, x)

    async def _patient_encoding(self, patient: PatientRef) -> PatientEncoding:
        """Computed once for all arms and seeds of a patient."""
        async with self._reading:
            if patient not in self._hints:
                self._hints[patient] = await asyncio.to_thread(self._encode, patient)
            self._hints.move_to_end(patient)
            while len(self._hints) > ENCODING_CACHE_SIZE:
                self._hints.popitem(last=False)
            return self._hints[patient]

    def _encode(self, patient: PatientRef) -> PatientEncoding:
        store = store_for_patient(patient, self._store, self._artifacts)
        shown = ModelInput(store.case(patient.subject).index, patient.sessions)
        given = store_reader(store, self._model.config)(shown)
        condition, covariates = (torch.from_numpy(each).to(self._device) for each in given)
        return self._model.encode_patient(condition, covariates, self._sampler)

    def _to_drawn_samples(self, x: Sequence[Tensor]) -> SampleBatch:
        masks = np.stack([(each[NET2] > 0).cpu().numpy() for each in x])
        lesions = tuple(count_lesions(mask, self._store.spec.spacing) for mask in masks)
        return SampleBatch(np.packbits(masks, axis=-1), masks.shape[-1], lesions)
