"""Runs what was accepted: fans a forecast out as arms x blocks of seeds, gathers, writes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.forecasting.adaptive import Block, blocks, order_remarks, precise, rounds
from lesioncast.forecasting.disclaimers import evaluated_warnings, shown_remark
from lesioncast.forecasting.output.bids import write_forecast_root
from lesioncast.forecasting.pipeline import Origin, stored_flair, write_forecast
from lesioncast.forecasting.runtime import (
    bundle_remark,
    require_fit,
    shown_sessions,
    stated_of,
    trial_remarks,
)
from lesioncast.forecasting.sampling import Drawn, Request, ensembles, sample_seeds
from lesioncast.forecasting.settings import ForecastSettings
from serve.api.schemas import Patient
from serve.artifacts import old_uploads, remove_files, remove_upload, result_folder, with_files
from serve.db.models import REMOVED, Job, Part, State, part_of
from serve.db.repository import Records
from serve.log import logger
from serve.settings import Settings
from serve.uploads import patients_store
from serve.worker.retry import causes, passes, waits
from storage import Store, open_store


class Watch(Protocol):
    """Who is told how it goes; see `serve.metrics.ForecastMetrics`."""

    def waiting(self, number: int, oldest: float) -> None:
        """As the records say: how many, and the age of the oldest in seconds."""

    def began(self, seconds: float) -> None:
        """The first samples of a forecast are there."""

    def ended(self, state: str, seconds: float) -> None:
        """One forecast that came to an end."""

    def erred(self, error: str, outcome: str) -> None:
        """An error of that type made a forecast `failed` or `postponed`."""


Draw = Callable[[Job, Block], Awaitable[Drawn]]
POLL_SECONDS = 1.0
TIDY_SECONDS = 600.0


@dataclass(frozen=True)
class Study:
    """What the service has mounted: a bundle and a store that fit, and where results go."""

    bundle: Bundle
    store: Store
    settings: Settings

    def write(self, job: Job, parts: Sequence[Part]) -> Path:
        """The result of a job from its samples, just as jobs/forecast.py writes it.

        `parts` are as many blocks of every arm, in the order of `serve.api.schemas.blocks`.
        """
        order, patient = job.order, patient_of(job)
        store = patients_store(patient, self.store, self.settings.artifacts)
        case, bids = store.case(patient.subject), Path(store.table.bids)
        samples = samples_of(parts, order)
        seeds = sample_seeds(order["seed"], case.subject, samples)
        requests = [
            Request(case.index, store.spec.arms.index(arm), patient.sessions)
            for arm in order["arms"]
        ]
        stated = stated_of(self.bundle, store, requests[0].shown)
        sessions = shown_sessions(self.bundle, patient.sessions or ())
        drawn = [
            replace(part.drawn(), stated=stated)
            for arm in order["arms"]
            for part in parts
            if part.arm == arm
        ]
        found = ensembles(requests, {case.index: seeds}, drawn)
        out = result_folder(self.settings.artifacts, job.id)
        remarks = (
            bundle_remark(self.bundle.path),
            *trial_remarks(bids),
            shown_remark(sessions),
            *order_remarks(order),
        )
        write_forecast_root(out, source=bids)
        write_forecast(
            store,
            case,
            dict(zip(order["arms"], found, strict=True)),
            settings=ForecastSettings(
                samples=samples,
                reference_arm=order["reference_arm"],
                opening=self.settings.opening,
            ),
            origin=Origin(
                self.bundle.digest,
                order["seed"],
                remarks,
                sessions,
                self.bundle.config.covariates,
                evaluated_warnings(self.bundle.path, self.bundle.digest),
            ),
            out=out,
            background=stored_flair(store),
        )
        return out


def open_study(settings: Settings) -> Study:
    """Opens both. Raises ForecastError where they do not fit."""
    bundle, store = load_bundle(settings.bundle), open_store(settings.store)
    require_fit(bundle, store)
    return Study(bundle, store, settings)


def samples_of(parts: Sequence[Part], order: Mapping[str, Any]) -> int:
    """How many samples of each arm there are; all have as many."""
    return sum(len(part.lesions) for part in parts if part.arm == order["arms"][0])


def patient_of(job: Job) -> Patient:
    """Who a job is about, and by what."""
    order = job.order
    sessions = order.get("sessions")
    return Patient(
        order["subject"],
        job.id if order.get("upload") else None,
        None if sessions is None else tuple(sessions),
    )


class Forecaster:
    """Takes up every unfinished job of the records, draws for at most `running` of them at a time,
    and stops when a job has ended: the records alone say what there is to do.

    What happens to one job stays with it. `draw` draws one block, and is asked only for blocks that
    the records lack: a job that was interrupted goes on where it was.
    """

    def __init__(self, records: Records, study: Study, draw: Draw, watch: Watch) -> None:
        self._records, self._study, self._draw, self._watch = records, study, draw, watch
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._begun: set[str] = set()  # of those, the ones that have samples
        self._places = asyncio.Semaphore(study.settings.running)
        self._woken = asyncio.Event()
        self._tidied = -TIDY_SECONDS

    def wake(self) -> None:
        """There is something new in the records."""
        self._woken.set()

    async def run(self) -> None:
        """Never returns; looks into the records when woken, and now and then."""
        while True:
            self._woken.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("the records could not be followed; they will be")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)

    async def _look(self) -> None:
        """Takes up what is unfinished, and stops what no longer is."""
        if time.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = time.monotonic()
            await asyncio.to_thread(self._tidy_files)
        unfinished = {job.id: job for job in await asyncio.to_thread(self._records.unfinished)}
        oldest = max((time.time() - job.created for job in unfinished.values()), default=0.0)
        self._watch.waiting(len(unfinished), oldest)
        for name, task in self._tasks.items():
            if name not in unfinished and not task.cancelling():
                task.cancel()
        for name, job in unfinished.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._finish(job))

    async def _finish(self, job: Job) -> None:
        """One job to its end, in as many tries as that takes."""
        try:
            for wait in waits():
                async with self._places:
                    if await self._attempt(job):
                        return
                await asyncio.sleep(wait)
        except asyncio.CancelledError:  # it has ended; or by a stop, to be resumed
            await asyncio.to_thread(self._tidy, job.id)
        finally:
            del self._tasks[job.id]
            self._begun.discard(job.id)
            self.wake()

    async def _attempt(self, job: Job) -> bool:
        """Whether the job has ended by then; else it is not its own fault, see
        `serve.worker.retry`.
        """
        try:
            if await asyncio.to_thread(self._records.begin, job.id):
                await self._bring_to_end(job)
            else:  # it has ended, perhaps by a try whose answer was lost
                await asyncio.to_thread(self._tidy, job.id)
        except Exception as error:
            logger.warning("postponed", exc_info=True, extra={"forecast": job.id})
            self._tell(error, "postponed")
            return False
        return True

    async def _bring_to_end(self, job: Job) -> None:
        try:
            samples = await self._forecast(job)
        except Exception as error:
            if passes(error):
                raise
            logger.exception("failed", extra={"forecast": job.id})
            said = f"The forecast failed; the service's log says why, under {job.id}."
            await _whole(self._end(job, "failed", error=said))
            self._tell(error, "failed")
        else:
            total = samples * len(job.order["arms"])
            await _whole(self._end(job, "succeeded", total=total))

    def _tell(self, error: Exception, outcome: str) -> None:
        for name in {type(each).__name__ for each in causes(error)}:
            self._watch.erred(name, outcome)

    async def _end(self, job: Job, state: State, **values: Any) -> None:
        facts = {"bundle": self._study.bundle.digest}
        if await asyncio.to_thread(self._records.end, job.id, state, facts=facts, **values):
            seconds = time.time() - job.created
            logger.info("ended", extra={"forecast": job.id, "state": state, "seconds": seconds})
            self._watch.ended(state, seconds)
        else:  # somebody else ended it
            await asyncio.to_thread(self._tidy, job.id)

    async def _forecast(self, job: Job) -> int:
        """Draws and writes; how many samples of each arm that took."""
        used: list[Block] = []
        for some in rounds(job.order, blocks(job.order, size=job.block)):
            used += some
            parts = await self._gather(job, used)
            if precise(job.order, self._counts(job, parts)):
                break
        await _whole(asyncio.to_thread(self._study.write, job, parts))
        return samples_of(parts, job.order)

    async def _gather(self, job: Job, wanted: Sequence[Block]) -> list[Part]:
        """The samples of each block wanted, in order; those that the records lack are drawn."""
        while True:
            kept = await asyncio.to_thread(self._records.parts, job.id, self._study.bundle.digest)
            by_place = {(part.arm, part.first): part for part in kept}
            missing = [block for block in wanted if (block.arm, block.first) not in by_place]
            if kept:
                self._begun.add(job.id)
            if not missing:
                return [by_place[block.arm, block.first] for block in wanted]
            async with asyncio.TaskGroup() as group:
                for block in missing:
                    group.create_task(self._keep(job, block))

    def _counts(self, job: Job, parts: Sequence[Part]) -> dict[str, list[int]]:
        """Lesions of each sample so far, by arm."""
        column = 1 if self._study.settings.opening else 0
        counts: dict[str, list[int]] = {arm: [] for arm in job.order["arms"]}
        for part in parts:
            counts[part.arm] += [each[column] for each in part.lesions]
        return counts

    def _tidy(self, job: str) -> None:
        self._records.tidy(job)
        found = self._records.find(job)
        if found is not None and found.state in REMOVED:
            remove_files(self._study.settings.artifacts, job)

    def _tidy_files(self) -> None:
        """What a process left that died before it could remove it."""
        artifacts = self._study.settings.artifacts
        for upload in old_uploads(artifacts):
            if self._records.find(upload) is None:
                remove_upload(artifacts, upload)
        for job in with_files(artifacts) & self._records.removed():
            remove_files(artifacts, job)

    async def _keep(self, job: Job, block: Block) -> None:
        drawn = await self._draw(job, block)
        part = part_of(job.id, self._study.bundle.digest, block.arm, block.first, drawn)
        await _whole(asyncio.to_thread(self._records.add_part, part))
        if job.id not in self._begun:
            self._begun.add(job.id)
            self._watch.began(time.time() - job.created)


async def _whole(doing: Coroutine[Any, Any, None | Path]) -> None:
    """To its end even where who waits for it is cancelled, who may then remove what it wrote."""
    task = asyncio.create_task(doing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
