"""The forecast worker: draw the samples of each job in blocks, and write the result."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from lesioncast.forecasting.adaptive import (
    SampleBlock,
    is_precise_enough,
    sampling_rounds,
    split_into_blocks,
)
from lesioncast.forecasting.ensemble import DrawnCounts, ExpectedOutcomes
from lesioncast.forecasting.sampling import SampleBatch
from lesioncast.imaging.lesions import LesionCounts
from serve.api.schemas import ForecastState
from serve.artifacts import jobs_with_artifacts, remove_artifacts, remove_upload, stale_uploads
from serve.db.models import DISCARDED_STATES, DrawnBlock, ForecastJob, to_drawn_block
from serve.db.repository import JobRepository
from serve.log import logger
from serve.retention import apply_retention
from serve.worker.loaded_model import LoadedModel, samples_per_arm
from serve.worker.retry import Failure, backoff_delays, failure_of, leaf_exceptions

Result = TypeVar("Result")
DrawBlock = Callable[[ForecastJob, SampleBlock], Awaitable[SampleBatch]]
POLL_SECONDS = 1.0
CLEANUP_INTERVAL_S = 600.0


class WorkerObserver(Protocol):
    """Receives what happens to forecasts; see `serve.metrics.ForecastMetrics`."""

    def set_backlog(self, pending: int, oldest_seconds: float) -> None:
        """Set the number of pending forecasts and the age of the oldest."""

    def observe_first_samples(self, seconds: float) -> None:
        """Record the time from acceptance to the first samples of a forecast."""

    def observe_finished(self, state: str, seconds: float) -> None:
        """Record a finished forecast and the time since its acceptance."""

    def count_warnings(self, codes: Iterable[str]) -> None:
        """Count a finished forecast once for each code among its warnings."""

    def count_error(self, error: str, outcome: str) -> None:
        """Count an error of type `error`; `outcome` is `failed` or `postponed`."""


class _Written(NamedTuple):
    """A result that was written."""

    #: Number of samples of each arm.
    samples: int
    #: Codes of its warnings.
    warnings: tuple[str, ...]


class ForecastWorker:
    """Run every unfinished job of the database, and stop jobs that were cancelled.

    The database alone says what there is to do, so that a restarted worker continues where the
    last one stopped. At most `max_concurrent_forecasts` jobs are drawn at a time. An error of one
    job does not affect the others. `draw` draws one block; it is called only for blocks that the
    database lacks.
    """

    def __init__(
        self, jobs: JobRepository, loaded: LoadedModel, draw: DrawBlock, observer: WorkerObserver
    ) -> None:
        self._jobs, self._loaded, self._draw, self._observer = jobs, loaded, draw, observer
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._with_samples: set[str] = set()  # the running jobs that have at least one block
        self._failing_since: dict[str, float] = {}  # jobs without progress since then
        self._slots = asyncio.Semaphore(loaded.settings.max_concurrent_forecasts)
        self._woken = asyncio.Event()
        self._last_cleanup = -CLEANUP_INTERVAL_S

    def wake(self) -> None:
        """Look at the jobs now rather than at the next poll."""
        self._woken.set()

    async def run(self) -> None:
        """Look at the jobs when woken, and every `POLL_SECONDS`. Never returns."""
        while True:
            # Clear before polling: a wake during the poll must lead to another poll.
            self._woken.clear()
            try:
                await self._poll()
            except Exception:
                # The database may be unavailable; the next poll tries again.
                logger.exception("worker.poll_failed")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_SECONDS)

    async def _poll(self) -> None:
        """Start a task for each new job, and cancel the tasks of jobs that have finished."""
        if time.monotonic() - self._last_cleanup > CLEANUP_INTERVAL_S:
            self._last_cleanup = time.monotonic()
            await asyncio.to_thread(self._clean_up_orphans)
        unfinished = {job.id: job for job in await asyncio.to_thread(self._jobs.unfinished)}
        oldest = max((time.time() - job.created for job in unfinished.values()), default=0.0)
        self._observer.set_backlog(len(unfinished), oldest)
        for job_id, task in self._tasks.items():
            # A task that is being cancelled may still clean up; a second cancel would interrupt it.
            if job_id not in unfinished and not task.cancelling():
                task.cancel()
        for job_id, job in unfinished.items():
            if job_id not in self._tasks:
                self._tasks[job_id] = asyncio.create_task(self._run_with_retries(job))

    async def _run_with_retries(self, job: ForecastJob) -> None:
        """Run one job, retrying after transient errors until it has finished."""
        try:
            for delay in backoff_delays():
                # The slot is given back during the delay, so that other jobs can run.
                async with self._slots:
                    if await self._try_once(job):
                        return
                await asyncio.sleep(delay)
        except asyncio.CancelledError:
            # Either the job was cancelled, or the worker stops and the job is resumed later.
            await asyncio.to_thread(self._clean_up_job, job.id)
        finally:
            del self._tasks[job.id]
            self._with_samples.discard(job.id)
            self._failing_since.pop(job.id, None)
            # The backlog has changed: poll again rather than wait.
            self.wake()

    async def _try_once(self, job: ForecastJob) -> bool:
        """Run one job. Returns False after a transient error; see `serve.worker.retry`."""
        try:
            if await asyncio.to_thread(self._jobs.mark_running, job.id):
                await self._run_job(job)
            else:
                # The job has finished, perhaps in an attempt whose commit succeeded although its
                # answer was lost.
                await asyncio.to_thread(self._clean_up_job, job.id)
        except Exception as error:
            logger.warning("forecast.postponed", exc_info=True, extra={"forecast": job.id})
            self._count_errors(error, "postponed")
            return False
        return True

    async def _run_job(self, job: ForecastJob) -> None:
        """Draw and write a job, and record how it finished. Raises transient errors only."""
        try:
            written = await self._draw_and_write(job)
        except Exception as error:
            failure = failure_of(error)
            if failure.transient and not self._has_failed_too_long(job):
                raise
            logger.exception("forecast.failed", extra={"forecast": job.id})
            reason = self._reason(job, failure)
            await _run_to_completion(self._finish_job(job, "failed", error=reason))
            self._count_errors(error, "failed")
        else:
            total = written.samples * len(job.request.arms)
            await _run_to_completion(
                self._finish_job(job, "succeeded", total=total, warnings=written.warnings)
            )

    def _has_failed_too_long(self, job: ForecastJob) -> bool:
        """Return True if a job has met transient errors alone for `give_up_after` seconds."""
        since = self._failing_since.setdefault(job.id, time.monotonic())
        return time.monotonic() - since > self._loaded.settings.give_up_after

    def _reason(self, job: ForecastJob, failure: Failure) -> str:
        """Return the sentence for the client. It has no details: they may name files, subjects."""
        log = f"the service's log says more, under {job.id}."
        if failure.reason is None:
            return f"The forecast failed; {log}"
        if failure.transient:
            limit = self._loaded.settings.give_up_after
            return f"The forecast was given up after {limit} s of attempts: {failure.reason}; {log}"
        return f"The forecast failed: {failure.reason}; {log}"

    def _count_errors(self, error: Exception, outcome: str) -> None:
        for name in {type(leaf).__name__ for leaf in leaf_exceptions(error)}:
            self._observer.count_error(name, outcome)

    async def _finish_job(
        self,
        job: ForecastJob,
        state: ForecastState,
        *,
        error: str | None = None,
        total: int | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        facts = {"bundle": self._loaded.bundle.digest}
        finished = await asyncio.to_thread(
            self._jobs.finish, job.id, state, error=error, total=total, facts=facts
        )
        if finished:
            seconds = time.time() - job.created
            logger.info(
                "forecast.finished", extra={"forecast": job.id, "state": state, "seconds": seconds}
            )
            self._observer.observe_finished(state, seconds)
            self._observer.count_warnings(warnings)
        else:  # the client or another worker finished it first
            await asyncio.to_thread(self._clean_up_job, job.id)

    async def _draw_and_write(self, job: ForecastJob) -> _Written:
        """Draw the samples and write the result."""
        request, requested = job.request.sampling_request, list[SampleBlock]()
        expected: dict[str, ExpectedOutcomes] = {}
        if request.tolerance is not None:
            expected = await asyncio.to_thread(self._loaded.expected_by_arm, job)
        all_blocks = split_into_blocks(request, size=job.block_size)
        for round_blocks in sampling_rounds(all_blocks, tolerance=request.tolerance):
            requested += round_blocks
            blocks = await self._collect_blocks(job, requested)
            if is_precise_enough(
                _drawn_counts(requested, blocks, expected),
                opening=self._loaded.settings.apply_opening,
                tolerance=request.tolerance,
            ):
                break
        summary = await _run_to_completion(
            asyncio.to_thread(self._loaded.write_result, job, blocks)
        )
        codes = tuple(warning.code for warning in summary.warnings)
        return _Written(samples_per_arm(blocks, job.request), codes)

    async def _collect_blocks(
        self, job: ForecastJob, requested: Sequence[SampleBlock]
    ) -> list[DrawnBlock]:
        """Return the requested blocks in order, drawing those that the database lacks.

        The loop reads the blocks back from the database, so that a restarted job and an
        uninterrupted one continue from the same rows.
        """
        while True:
            stored = await asyncio.to_thread(
                self._jobs.load_blocks, job.id, self._loaded.bundle.digest
            )
            by_place = {(block.arm, block.first_seed_index): block for block in stored}
            missing = [block for block in requested if (block.arm, block.first) not in by_place]
            if stored:
                self._with_samples.add(job.id)
            if not missing:
                return [by_place[block.arm, block.first] for block in requested]
            async with asyncio.TaskGroup() as group:
                for block in missing:
                    group.create_task(self._draw_and_save_block(job, block))

    async def _draw_and_save_block(self, job: ForecastJob, block: SampleBlock) -> None:
        batch = await self._draw(job, block)
        drawn = to_drawn_block(job.id, self._loaded.bundle.digest, block.arm, block.first, batch)
        await _run_to_completion(asyncio.to_thread(self._jobs.save_block, drawn))
        self._failing_since.pop(job.id, None)  # there is progress
        if job.id not in self._with_samples:
            self._with_samples.add(job.id)
            self._observer.observe_first_samples(time.time() - job.created)

    def _clean_up_job(self, job_id: str) -> None:
        """Delete the samples of a finished job, and the files of a cancelled or deleted one."""
        self._jobs.delete_blocks(job_id)
        job = self._jobs.get(job_id)
        if job is not None and job.state in DISCARDED_STATES:
            remove_artifacts(self._loaded.settings.artifacts, job_id)

    def _clean_up_orphans(self) -> None:
        """Delete forecasts that expired, and files that a process left when it died."""
        artifacts = self._loaded.settings.artifacts
        apply_retention(self._jobs, self._loaded.settings)
        for upload in stale_uploads(artifacts):
            if self._jobs.get(upload) is None:
                remove_upload(artifacts, upload)
        for job_id in jobs_with_artifacts(artifacts) & self._jobs.removed_job_ids():
            remove_artifacts(artifacts, job_id)


def _drawn_counts(
    requested: Sequence[SampleBlock],
    blocks: Sequence[DrawnBlock],
    expected: Mapping[str, ExpectedOutcomes],
) -> dict[str, DrawnCounts]:
    """Return the samples so far by arm, from the `blocks` that were drawn as `requested`."""
    lesions: dict[str, list[LesionCounts]] = {}
    seeds: dict[str, list[int]] = {}
    for request, block in zip(requested, blocks, strict=True):
        lesions.setdefault(request.arm, []).extend(block.lesion_counts())
        seeds.setdefault(request.arm, []).extend(request.seeds)
    return {
        arm: DrawnCounts(
            plain=np.array([sample.plain for sample in lesions[arm]], np.int64),
            opened=np.array([sample.opened for sample in lesions[arm]], np.int64),
            expected=expected.get(arm),
            seeds=tuple(seeds[arm]),
        )
        for arm in lesions
    }


async def _run_to_completion(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run the coroutine to completion even if the caller is cancelled, and return its result.

    So the caller can clean up its output safely: a thread that writes files cannot be cancelled,
    and would write after the clean-up.
    """
    task = asyncio.create_task(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
