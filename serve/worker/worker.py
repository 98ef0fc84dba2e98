"""Runs what was accepted: fans a forecast out as arms x blocks of seeds, gathers, writes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.forecasting.adaptive import (
    SampleBlock,
    SamplingRequest,
    is_precise_enough,
    sampling_notes,
    sampling_rounds,
    split_into_blocks,
)
from lesioncast.forecasting.output.bids import write_forecast_root
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    run_provenance,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import check_compatible, expected_outcomes_of
from lesioncast.forecasting.sampling import ModelInput, SampleBatch
from lesioncast.forecasting.settings import ForecastSettings
from serve.api.schemas import PatientRef
from serve.artifacts import (
    jobs_with_artifacts,
    remove_artifacts,
    remove_upload,
    result_dir,
    stale_uploads,
)
from serve.db.models import DISCARDED_STATES, DrawnBlock, ForecastJob, State, to_drawn_block
from serve.db.repository import JobRepository
from serve.log import logger
from serve.settings import ServiceSettings
from serve.uploads import store_for_patient
from serve.worker.retry import backoff_delays, is_transient, leaf_exceptions
from storage import Store, open_store


class WorkerObserver(Protocol):
    """Who is told how it goes; see `serve.metrics.ForecastMetrics`."""

    def set_backlog(self, number: int, oldest: float) -> None:
        """As the records say: how many, and the age of the oldest in seconds."""

    def observe_first_samples(self, seconds: float) -> None:
        """The first samples of a forecast are there."""

    def observe_finished(self, state: str, seconds: float) -> None:
        """One forecast that came to an end."""

    def count_error(self, error: str, outcome: str) -> None:
        """An error of that type made a forecast `failed` or `postponed`."""


DrawBlock = Callable[[ForecastJob, SampleBlock], Awaitable[SampleBatch]]
POLL_SECONDS = 1.0
CLEANUP_INTERVAL_S = 600.0


@dataclass(frozen=True)
class LoadedModel:
    """What the service has mounted: a bundle and a store that fit, and where results go."""

    bundle: Bundle
    store: Store
    settings: ServiceSettings

    def write(self, job: ForecastJob, parts: Sequence[DrawnBlock]) -> Path:
        """The result of a job from its samples, just as jobs/forecast.py writes it.

        `parts` are as many blocks of every arm, in the order of `serve.api.schemas.blocks`.
        """
        order, patient = job.order, patient_for_job(job)
        store = store_for_patient(patient, self.store, self.settings.artifacts)
        case, bids = store.case(patient.subject), Path(store.table.bids)
        expected = expected_outcomes_of(
            self.bundle, store, ModelInput(case.index, patient.sessions)
        )
        drawn = [
            replace(part.drawn(), expected=expected)
            for arm in order["arms"]
            for part in parts
            if part.arm == arm
        ]
        sessions = patient.sessions or ()
        run = ForecastRun(
            settings=ForecastSettings(
                samples=samples_per_arm(parts, order),
                reference_arm=order["reference_arm"],
                apply_opening=self.settings.apply_opening,
                sessions=sessions,
            ),
            provenance=run_provenance(
                self.bundle,
                seed=order["seed"],
                sessions=sessions,
                bids=bids,
                notes=sampling_notes(sampling_request(order)),
            ),
            out=result_dir(self.settings.artifacts, job.id),
            background=stored_flair(store),
        )
        write_forecast_root(run.out, source=bids)
        for _ in write_forecasts(store, [case], drawn, run, arms=order["arms"]):
            pass  # the one case is written as it is yielded
        return run.out


def load_model_and_store(settings: ServiceSettings) -> LoadedModel:
    """Opens both. Raises ForecastError where they do not fit."""
    bundle, store = load_bundle(settings.bundle), open_store(settings.store)
    check_compatible(bundle, store)
    return LoadedModel(bundle, store, settings)


def samples_per_arm(parts: Sequence[DrawnBlock], order: Mapping[str, Any]) -> int:
    """How many samples of each arm there are; all have as many."""
    return sum(len(part.lesions) for part in parts if part.arm == order["arms"][0])


def sampling_request(order: Mapping[str, Any]) -> SamplingRequest:
    """Return the samples that an order asks for."""
    return SamplingRequest(
        subject=order["subject"],
        arms=tuple(order["arms"]),
        seed=order["seed"],
        samples=order["samples"],
        tolerance=order.get("error"),
        sampler_overrides=order.get("sampler", {}),
    )


def patient_for_job(job: ForecastJob) -> PatientRef:
    """Who a job is about, and by what."""
    order = job.order
    sessions = order.get("sessions")
    return PatientRef(
        order["subject"],
        job.id if order.get("upload") else None,
        None if sessions is None else tuple(sessions),
    )


class ForecastWorker:
    """Takes up every unfinished job of the records, draws for at most `running` of them at a time,
    and stops when a job has ended: the records alone say what there is to do.

    What happens to one job stays with it. `draw` draws one block, and is asked only for blocks that
    the records lack: a job that was interrupted goes on where it was.
    """

    def __init__(
        self, records: JobRepository, study: LoadedModel, draw: DrawBlock, watch: WorkerObserver
    ) -> None:
        self._records, self._study, self._draw, self._watch = records, study, draw, watch
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._begun: set[str] = set()  # of those, the ones that have samples
        self._places = asyncio.Semaphore(study.settings.max_concurrent_forecasts)
        self._woken = asyncio.Event()
        self._tidied = -CLEANUP_INTERVAL_S

    def wake(self) -> None:
        """There is something new in the records."""
        self._woken.set()

    async def run(self) -> None:
        """Never returns; looks into the records when woken, and now and then."""
        while True:
            self._woken.clear()
            try:
                await self._poll()
            except Exception:
                logger.exception("the records could not be followed; they will be")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)

    async def _poll(self) -> None:
        """Takes up what is unfinished, and stops what no longer is."""
        if time.monotonic() - self._tidied > CLEANUP_INTERVAL_S:
            self._tidied = time.monotonic()
            await asyncio.to_thread(self._clean_up_orphans)
        unfinished = {job.id: job for job in await asyncio.to_thread(self._records.unfinished)}
        oldest = max((time.time() - job.created for job in unfinished.values()), default=0.0)
        self._watch.set_backlog(len(unfinished), oldest)
        for name, task in self._tasks.items():
            if name not in unfinished and not task.cancelling():
                task.cancel()
        for name, job in unfinished.items():
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._run_with_retries(job))

    async def _run_with_retries(self, job: ForecastJob) -> None:
        """One job to its end, in as many tries as that takes."""
        try:
            for wait in backoff_delays():
                async with self._places:
                    if await self._try_once(job):
                        return
                await asyncio.sleep(wait)
        except asyncio.CancelledError:  # it has ended; or by a stop, to be resumed
            await asyncio.to_thread(self._clean_up_job, job.id)
        finally:
            del self._tasks[job.id]
            self._begun.discard(job.id)
            self.wake()

    async def _try_once(self, job: ForecastJob) -> bool:
        """Whether the job has ended by then; else it is not its own fault, see
        `serve.worker.retry`.
        """
        try:
            if await asyncio.to_thread(self._records.mark_running, job.id):
                await self._run_job(job)
            else:  # it has ended, perhaps by a try whose answer was lost
                await asyncio.to_thread(self._clean_up_job, job.id)
        except Exception as error:
            logger.warning("postponed", exc_info=True, extra={"forecast": job.id})
            self._count_errors(error, "postponed")
            return False
        return True

    async def _run_job(self, job: ForecastJob) -> None:
        try:
            samples = await self._draw_and_write(job)
        except Exception as error:
            if is_transient(error):
                raise
            logger.exception("failed", extra={"forecast": job.id})
            said = f"The forecast failed; the service's log says why, under {job.id}."
            await _run_to_completion(self._finish_job(job, "failed", error=said))
            self._count_errors(error, "failed")
        else:
            total = samples * len(job.order["arms"])
            await _run_to_completion(self._finish_job(job, "succeeded", total=total))

    def _count_errors(self, error: Exception, outcome: str) -> None:
        for name in {type(each).__name__ for each in leaf_exceptions(error)}:
            self._watch.count_error(name, outcome)

    async def _finish_job(self, job: ForecastJob, state: State, **values: Any) -> None:
        facts = {"bundle": self._study.bundle.digest}
        if await asyncio.to_thread(self._records.finish, job.id, state, facts=facts, **values):
            seconds = time.time() - job.created
            logger.info("ended", extra={"forecast": job.id, "state": state, "seconds": seconds})
            self._watch.observe_finished(state, seconds)
        else:  # somebody else ended it
            await asyncio.to_thread(self._clean_up_job, job.id)

    async def _draw_and_write(self, job: ForecastJob) -> int:
        """Draws and writes; how many samples of each arm that took."""
        used: list[SampleBlock] = []
        request = sampling_request(job.order)
        blocks = split_into_blocks(request, size=job.block)
        for round_blocks in sampling_rounds(blocks, tolerance=request.tolerance):
            used += round_blocks
            parts = await self._collect_blocks(job, used)
            if is_precise_enough(self._counts(job, parts), tolerance=request.tolerance):
                break
        await _run_to_completion(asyncio.to_thread(self._study.write, job, parts))
        return samples_per_arm(parts, job.order)

    async def _collect_blocks(
        self, job: ForecastJob, wanted: Sequence[SampleBlock]
    ) -> list[DrawnBlock]:
        """The samples of each block wanted, in order; those that the records lack are drawn."""
        while True:
            kept = await asyncio.to_thread(
                self._records.load_blocks, job.id, self._study.bundle.digest
            )
            by_place = {(part.arm, part.first): part for part in kept}
            missing = [block for block in wanted if (block.arm, block.first) not in by_place]
            if kept:
                self._begun.add(job.id)
            if not missing:
                return [by_place[block.arm, block.first] for block in wanted]
            async with asyncio.TaskGroup() as group:
                for block in missing:
                    group.create_task(self._draw_and_save_block(job, block))

    def _counts(self, job: ForecastJob, parts: Sequence[DrawnBlock]) -> dict[str, list[int]]:
        """Lesions of each sample so far, by arm."""
        column = 1 if self._study.settings.apply_opening else 0
        counts: dict[str, list[int]] = {arm: [] for arm in job.order["arms"]}
        for part in parts:
            counts[part.arm] += [each[column] for each in part.lesions]
        return counts

    def _clean_up_job(self, job: str) -> None:
        self._records.delete_blocks(job)
        found = self._records.get(job)
        if found is not None and found.state in DISCARDED_STATES:
            remove_artifacts(self._study.settings.artifacts, job)

    def _clean_up_orphans(self) -> None:
        """What a process left that died before it could remove it."""
        artifacts = self._study.settings.artifacts
        for upload in stale_uploads(artifacts):
            if self._records.get(upload) is None:
                remove_upload(artifacts, upload)
        for job in jobs_with_artifacts(artifacts) & self._records.removed_job_ids():
            remove_artifacts(artifacts, job)

    async def _draw_and_save_block(self, job: ForecastJob, block: SampleBlock) -> None:
        drawn = await self._draw(job, block)
        part = to_drawn_block(job.id, self._study.bundle.digest, block.arm, block.first, drawn)
        await _run_to_completion(asyncio.to_thread(self._records.save_block, part))
        if job.id not in self._begun:
            self._begun.add(job.id)
            self._watch.observe_first_samples(time.time() - job.created)


async def _run_to_completion(doing: Coroutine[Any, Any, None | Path]) -> None:
    """To its end even where who waits for it is cancelled, who may then remove what it wrote."""
    task = asyncio.create_task(doing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
