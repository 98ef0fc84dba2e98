"""The engine thread survives callers that disappear, and reports an engine that fails."""

import asyncio
import threading

import pytest
import torch

from lesioncast.diffusion.continuous_batching import SampleRequest
from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.members import MemberDraw
from serve.inference.engine_thread import EngineThread
from serve.inference.reports import EngineStoppedError

DRAW = MemberDraw(0, SampleCondition(PatientEncoding(torch.zeros(1), None, None), 0))


def test_the_engine_survives_a_caller_whose_loop_is_closed() -> None:
    release = threading.Event()

    class Slow:
        """An engine that draws its one sample once it is released."""

        busy, running, waiting, rows = True, 1, 0, 1

        def add(self, requests: list[SampleRequest[SampleCondition]]) -> None:
            self.requests = requests

        def step(self) -> list[tuple[SampleRequest[SampleCondition], torch.Tensor]]:
            release.wait()
            self.busy = False
            return [(request, torch.zeros(1)) for request in self.requests]

    thread = EngineThread(lambda _: Slow(), lambda _: None)  # type: ignore[arg-type,return-value]
    loop = asyncio.new_event_loop()
    loop.create_task(thread.draw("job", [DRAW], [0], SamplerConfig()))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()  # without an end to the task, as a server does that is stopped at once
    release.set()
    assert asyncio.run(thread.draw("next", [DRAW], [0], SamplerConfig()))[0].tolist() == [0.0]
    assert thread.alive


def test_after_a_failed_step_every_draw_raises() -> None:
    """Draws that run, one that arrives while the step fails, and later ones raise."""
    entered, release = threading.Event(), threading.Event()

    class Failing:
        """An engine whose first step fails once it is released."""

        busy, running, waiting, rows = True, 0, 0, 0

        def add(self, requests: list[SampleRequest[SampleCondition]]) -> None:
            pass

        def step(self) -> list[tuple[SampleRequest[SampleCondition], torch.Tensor]]:
            entered.set()
            release.wait()
            raise RuntimeError("out of memory")

    thread = EngineThread(lambda _: Failing(), lambda _: None)  # type: ignore[arg-type,return-value]

    async def draws() -> None:
        def draw() -> asyncio.Task[list[torch.Tensor]]:
            return asyncio.create_task(thread.draw("job", [DRAW] * 2, [0, 1], SamplerConfig()))

        first = draw()
        assert await asyncio.to_thread(entered.wait, 10)
        assert thread.alive
        during = draw()
        await asyncio.sleep(0.05)  # so that it is in the inbox
        release.set()
        for task in (first, during, draw()):
            with pytest.raises(EngineStoppedError, match="out of memory"):
                await asyncio.wait_for(task, 10)
        assert not thread.alive

    asyncio.run(draws())
