"""The statuses of the forecasts that clients follow, from one poll of the database a process."""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress

from starlette.concurrency import run_in_threadpool

from serve.api.schemas import ForecastStatus
from serve.api.status import StatusReader
from serve.db.listing import JobVersion, read_versions
from serve.log import logger

POLL_SECONDS = 0.25
MAX_FOLLOWERS = 256
MAX_FOLLOWERS_PER_CLIENT = 32  # so that one client leaves room for the others


class ForecastGoneError(Exception):
    """The forecast is no longer in the database."""


class Follower:
    """One open stream, which sees the latest status alone.

    A client that reads slowly misses statuses in between, and makes no queue grow.
    """

    def __init__(self, owner: str, job_id: str) -> None:
        self.owner, self.job_id = owner, job_id
        self._changed = asyncio.Event()
        self._latest: ForecastStatus | None = None

    def publish(self, status: ForecastStatus | None) -> None:
        """Replace the latest status; None says that the forecast is gone."""
        self._latest = status
        self._changed.set()

    async def next_status(self, timeout_s: float) -> ForecastStatus | None:
        """Return the next status, None after `timeout_s`. Raises ForecastGoneError."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        if not self._changed.is_set():
            return None
        self._changed.clear()
        if self._latest is None:
            raise ForecastGoneError
        return self._latest


class StatusFeed:
    """All open streams of this process. Only while there are any, the database is polled."""

    def __init__(self, reader: StatusReader) -> None:
        self._reader = reader
        self._followers: set[Follower] = set()
        self._polling: asyncio.Task[None] | None = None

    def has_room(self, owner: str) -> bool:
        """Return whether a client may open another stream."""
        own = sum(follower.owner == owner for follower in self._followers)
        return own < MAX_FOLLOWERS_PER_CLIENT and len(self._followers) < MAX_FOLLOWERS

    @contextmanager
    def follow(self, owner: str, job_id: str) -> Iterator[Follower]:
        """Follow a forecast until the block ends."""
        follower = Follower(owner, job_id)
        self._followers.add(follower)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll())
        try:
            yield follower
        finally:
            self._followers.remove(follower)

    async def _poll(self) -> None:
        versions: dict[str, JobVersion] = {}
        while self._followers:
            await asyncio.sleep(POLL_SECONDS)
            followed = {follower.job_id for follower in self._followers}
            versions = {job_id: versions[job_id] for job_id in followed & versions.keys()}
            try:
                changed = await run_in_threadpool(self._read_changed, followed, versions)
            except Exception:
                # The database may be unavailable; the streams stay open and the next poll tries
                # again.
                logger.warning("events.poll_failed", exc_info=True)
                continue
            for follower in self._followers:
                if follower.job_id in changed:
                    version, status = changed[follower.job_id]
                    versions[follower.job_id] = version
                    follower.publish(status)

    def _read_changed(
        self, followed: Collection[str], versions: Mapping[str, JobVersion]
    ) -> dict[str, tuple[JobVersion, ForecastStatus | None]]:
        """Return version and status of each forecast that differs from `versions`, by id.

        The version is read first. A change in between shows in the next version, so none is missed.
        """
        found = read_versions(self._reader.jobs, followed, self._reader.bundle)
        changed: dict[str, tuple[JobVersion, ForecastStatus | None]]
        changed = dict.fromkeys(set(followed) - found.keys(), ((), None))
        for job_id, (job, version) in found.items():
            if versions.get(job_id) != version:
                changed[job_id] = version, self._reader.read(job, "")
        return changed
