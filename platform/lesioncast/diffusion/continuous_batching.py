"""Step-level continuous batching: samples of any patient, arm, seed and step share a forward pass.

A sample enters as soon as a slot is free and leaves when it is done, settled or cancelled, between
any two steps. What it becomes depends on what its denoiser is told of it and on its seed alone.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lesioncast.diffusion.objective import Denoiser
from lesioncast.diffusion.schedule import ScheduleConfig
from lesioncast.diffusion.solvers import (
    SamplerConfig,
    SolverState,
    initial_state,
    seeded_generators,
    seeded_noise,
    solver_coefficients,
    solver_step,
)

ConditionT = TypeVar("ConditionT")


@dataclass(frozen=True)
class SampleRequest(Generic[ConditionT]):
    """One sample to draw: for which `request`, its `name` there, what it is of, and its seed."""

    request: Hashable
    name: Hashable
    of: ConditionT
    seed: int


class ContinuousBatcher(Generic[ConditionT]):
    """At most `slots` samples at a time, each at a step of its own; not thread-safe.

    `denoiser` makes the denoiser of the samples that now share a batch, in order; it is asked again
    only when one enters or leaves. `settled`, bool [n] of x_hat [n, *shape], ends a sample early
    with its x_hat once nothing can change any more. `known` is the x of a sample that needs no
    network, else None; such a sample takes no slot. `finish` has the last word on the x of a sample
    that ends. Free slots go to the request that holds the fewest, and among those to the one that
    has waited longest.
    """

    def __init__(
        self,
        denoiser: Callable[[Sequence[ConditionT]], Denoiser],
        *,
        shape: Sequence[int],
        schedule: ScheduleConfig,
        sampler: SamplerConfig,
        slots: int,
        device: torch.device | str = "cpu",
        settled: Callable[[Tensor], Tensor] | None = None,
        known: Callable[[ConditionT], Tensor | None] = lambda _: None,
        finish: Callable[[ConditionT, Tensor], Tensor] = lambda _, x: x,
    ) -> None:
        self.slots = slots
        self._denoiser, self._settled = denoiser, settled
        self._known, self._finish = known, finish
        self._shape, self._device = tuple(shape), device
        self._steps, self._num_steps = solver_coefficients(schedule, sampler), sampler.num_steps
        self._waiting: dict[
            Hashable, deque[SampleRequest[ConditionT]]
        ] = {}  # longest unserved first
        self._running: list[SampleRequest[ConditionT]] = []
        self._generators: list[torch.Generator] = []
        self._state = initial_state(torch.empty(0, *self._shape, device=device))
        self._denoise: Denoiser | None = None
        self.rows = 0  # of the forward pass of the last step; 0 where it needed none

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Samples without a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._waiting)

    def add(self, wanted: Iterable[SampleRequest[ConditionT]]) -> None:
        """Samples that enter at the next step with a free slot for them."""
        for each in wanted:
            self._waiting.setdefault(each.request, deque()).append(each)

    def cancel(self, which: Callable[[SampleRequest[ConditionT]], bool]) -> None:
        """The samples of which it is true leave now; their slots are free at the next step."""
        left = {
            request: deque(each for each in queue if not which(each))
            for request, queue in self._waiting.items()
        }
        self._waiting = {request: queue for request, queue in left.items() if queue}
        self._retain([not which(each) for each in self._running])

    @torch.no_grad()
    def step(self) -> list[tuple[SampleRequest[ConditionT], Tensor]]:
        """Every sample one step further; those that are done, each with its x [*shape]."""
        finished = self._admit()
        self.rows = len(self._running)
        if not self._running:
            return finished
        if self._denoise is None:
            self._denoise = self._denoiser([each.of for each in self._running])
        noise = seeded_noise(self._generators, self._shape).to(self._device)
        self._state = solver_step(self._denoise, self._state, noise, steps=self._steps)
        x = self._state.x_hat_before  # the last step's z is x_hat
        done = self._state.step == self._num_steps
        if self._settled is not None:
            done |= self._settled(x)
        ended = done.tolist()
        finished += [
            (each, self._finish(each.of, x[row].clone()))
            for row, each in enumerate(self._running)
            if ended[row]
        ]
        self._retain([not end for end in ended])
        return finished

    def _admit(self) -> list[tuple[SampleRequest[ConditionT], Tensor]]:
        """Fills the free slots; returns those on the way to them whose x is known."""
        entering: list[SampleRequest[ConditionT]] = []
        known: list[tuple[SampleRequest[ConditionT], Tensor]] = []
        while self._waiting and len(self._running) < self.slots:
            wanted = self._next()
            if (x := self._known(wanted.of)) is not None:
                known.append((wanted, x))
                continue
            entering.append(wanted)
            self._running.append(wanted)
        if not entering:
            return known
        generators = seeded_generators([each.seed for each in entering])
        new = initial_state(seeded_noise(generators, self._shape).to(self._device))
        self._generators += generators
        self._state = SolverState(
            torch.cat([self._state.z, new.z]),
            torch.cat([self._state.x_hat_before, new.x_hat_before]),
            torch.cat([self._state.step, new.step]),
        )
        self._denoise = None
        return known

    def _next(self) -> SampleRequest[ConditionT]:
        held = [each.request for each in self._running]
        request = min(self._waiting, key=held.count)
        queue = self._waiting.pop(request)
        wanted = queue.popleft()
        if queue:
            self._waiting[request] = queue  # to the end: it has been served
        return wanted

    def _retain(self, staying: Sequence[bool]) -> None:
        if all(staying):
            return
        rows = [row for row, stays in enumerate(staying) if stays]
        self._running = [self._running[row] for row in rows]
        self._generators = [self._generators[row] for row in rows]
        state = self._state
        self._state = SolverState(state.z[rows], state.x_hat_before[rows], state.step[rows])
        self._denoise = None


def run_until_idle(
    engine: ContinuousBatcher[ConditionT], of: Sequence[ConditionT], seeds: Sequence[int]
) -> Tensor:
    """One x for each of `of` and `seeds`, in order: [n, *shape] in [-1, 1]; the engine is idle."""
    engine.add(SampleRequest(0, row, each, seeds[row]) for row, each in enumerate(of))
    drawn: dict[Hashable, Tensor] = {}
    while engine.busy:
        drawn |= {wanted.name: x for wanted, x in engine.step()}
    return torch.stack([drawn[row] for row in range(len(of))])


def sample(
    denoise: Denoiser,
    *,
    shape: Sequence[int],
    seeds: Sequence[int],
    schedule: ScheduleConfig,
    sampler: SamplerConfig,
    settled: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One x of `shape` per seed from a denoiser that treats all rows alike: [n, *shape]."""
    engine = ContinuousBatcher[None](
        lambda _: denoise,
        shape=shape,
        schedule=schedule,
        sampler=sampler,
        slots=len(seeds),
        settled=settled,
    )
    return run_until_idle(engine, [None] * len(seeds), seeds)
