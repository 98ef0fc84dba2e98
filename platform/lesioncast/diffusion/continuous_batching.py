"""Continuous batching of reverse diffusion: samples at different steps share a forward pass.

A sample enters as soon as a slot is free. It leaves, between any two steps, when it is finished,
decided or cancelled. A sample depends on its condition and its seed alone, whatever samples share
its batches.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lesioncast.diffusion.objective import Denoiser
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig
from lesioncast.diffusion.solvers import (
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
    """One sample to generate from a condition and a seed.

    `request` groups samples that share slots fairly with other groups. `name` identifies the sample
    within its group.
    """

    request: Hashable
    name: Hashable
    condition: ConditionT
    seed: int


@dataclass(frozen=True)
class ReverseProcess(Generic[ConditionT]):
    """Reverse process of the samples in a batch: how they are denoised and when they end."""

    #: Make the denoiser of the samples that share a batch, given their conditions in order.
    make_denoiser: Callable[[Sequence[ConditionT]], Denoiser]
    #: Shape of a sample.
    shape: Sequence[int]
    schedule: ScheduleConfig
    sampler: SamplerConfig
    device: torch.device | str = "cpu"
    #: Tell which samples of x_hat [n, *shape] no further step can change, bool [n]. They end early.
    is_decided: Callable[[Tensor], Tensor] | None = None
    #: Return the x of a sample that needs no network, or None. Such a sample takes no slot.
    known_sample: Callable[[ConditionT], Tensor | None] = lambda _: None
    #: Post-process the x of a sample that has ended.
    finalise: Callable[[ConditionT, Tensor], Tensor] = lambda _, x: x
    #: Return the seed to draw again with in place of the seed that gave x, or None to keep x.
    redraw_seed: Callable[[int, Tensor], int | None] = lambda _, x: None


class ContinuousBatcher(Generic[ConditionT]):
    """Continuous batching of up to `slots` samples, each at its own step. Not thread-safe.

    A free slot goes to the request that has the fewest running samples, and among equals to the one
    that has waited longest.
    """

    def __init__(self, process: ReverseProcess[ConditionT], *, slots: int) -> None:
        self.slots = slots
        self.rows = 0  # samples in the forward pass of the last step; 0 if it needed none
        self._process, self._shape = process, tuple(process.shape)
        self._steps = solver_coefficients(process.schedule, process.sampler)
        # Requests in the order in which they were last served, the longest unserved first.
        self._waiting: dict[Hashable, deque[SampleRequest[ConditionT]]] = {}
        # The rows of these three belong together: row i is the i-th running sample.
        self._running: list[SampleRequest[ConditionT]] = []
        self._generators: list[torch.Generator] = []
        self._state = initial_state(torch.empty(0, *self._shape, device=process.device))
        # Made anew only after a sample has entered or left.
        self._denoise: Denoiser | None = None

    @property
    def running(self) -> int:
        """Return the number of slots in use."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Return the number of samples without a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def busy(self) -> bool:
        """Return True if there is a sample to work on."""
        return bool(self._running or self._waiting)

    def add(self, samples: Iterable[SampleRequest[ConditionT]]) -> None:
        """Queue samples. They enter at the next step with a free slot."""
        for sample in samples:
            self._waiting.setdefault(sample.request, deque()).append(sample)

    def cancel(self, predicate: Callable[[SampleRequest[ConditionT]], bool]) -> None:
        """Remove the samples for which `predicate` is true. Their slots are free at once."""
        queues = {
            request: deque(sample for sample in queue if not predicate(sample))
            for request, queue in self._waiting.items()
        }
        self._waiting = {request: queue for request, queue in queues.items() if queue}
        self._retain([not predicate(sample) for sample in self._running])

    @torch.no_grad()
    def step(self) -> list[tuple[SampleRequest[ConditionT], Tensor]]:
        """Advance every running sample by one step; return those that ended, with x [*shape]."""
        finished = self._admit()
        self.rows = len(self._running)
        if not self._running:
            return finished
        process = self._process
        if self._denoise is None:
            self._denoise = process.make_denoiser([sample.condition for sample in self._running])
        noise = seeded_noise(self._generators, self._shape).to(process.device)
        self._state = solver_step(self._denoise, self._state, noise, steps=self._steps)
        x = self._state.previous_x_hat  # after the last step, z is x_hat
        done = self._state.step == process.sampler.num_steps
        if process.is_decided is not None:
            done |= process.is_decided(x)
        ended = done.tolist()
        rejected = []
        for row, sample in enumerate(self._running):
            if not ended[row]:
                continue
            final = process.finalise(sample.condition, x[row].clone())
            seed = process.redraw_seed(sample.seed, final)
            if seed is None:
                finished.append((sample, final))
            else:
                rejected.append(replace(sample, seed=seed))
        self._retain([not end for end in ended])
        self.add(rejected)
        return finished

    def _admit(self) -> list[tuple[SampleRequest[ConditionT], Tensor]]:
        """Fill the free slots. Return the waiting samples that needed no network, with their x."""
        entering: list[SampleRequest[ConditionT]] = []
        finished: list[tuple[SampleRequest[ConditionT], Tensor]] = []
        while self._waiting and len(self._running) < self.slots:
            sample = self._next()
            if (x := self._process.known_sample(sample.condition)) is not None:
                finished.append((sample, x))
                continue
            entering.append(sample)
            self._running.append(sample)
        if not entering:
            return finished
        generators = seeded_generators([sample.seed for sample in entering])
        noise = seeded_noise(generators, self._shape).to(self._process.device)
        new = initial_state(noise)
        self._generators += generators
        self._state = SolverState(
            torch.cat([self._state.z, new.z]),
            torch.cat([self._state.previous_x_hat, new.previous_x_hat]),
            torch.cat([self._state.step, new.step]),
        )
        self._denoise = None
        return finished

    def _next(self) -> SampleRequest[ConditionT]:
        """Remove the next sample from the queues and return it."""
        running = [sample.request for sample in self._running]
        request = min(self._waiting, key=running.count)  # the first of equals
        queue = self._waiting.pop(request)
        sample = queue.popleft()
        if queue:
            self._waiting[request] = queue  # moves to the end, since it has just been served
        return sample

    def _retain(self, staying: Sequence[bool]) -> None:
        """Keep the running samples for which `staying` is true."""
        if all(staying):
            return
        rows = [row for row, stays in enumerate(staying) if stays]
        self._running = [self._running[row] for row in rows]
        self._generators = [self._generators[row] for row in rows]
        state = self._state
        self._state = SolverState(state.z[rows], state.previous_x_hat[rows], state.step[rows])
        self._denoise = None


def run_until_idle(
    batcher: ContinuousBatcher[ConditionT], conditions: Sequence[ConditionT], seeds: Sequence[int]
) -> Tensor:
    """Generate one x in [-1, 1] per condition and seed, in order: [n, *shape].

    `batcher` must be idle.
    """
    batcher.add(
        SampleRequest(0, row, condition, seeds[row]) for row, condition in enumerate(conditions)
    )
    samples: dict[Hashable, Tensor] = {}
    while batcher.busy:
        samples |= {sample.name: x for sample, x in batcher.step()}
    return torch.stack([samples[row] for row in range(len(conditions))])
