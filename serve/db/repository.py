"""Accepted forecasts and their samples in a database, SQLite or PostgreSQL.

Committed rows survive the end of any process: an unfinished forecast continues with the blocks that
are missing.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import create_engine, delete, event, func, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lesioncast.imaging.lesions import LesionCounts
from serve.api.schemas import ForecastState, ResolvedRequest
from serve.db.audit import append_entry
from serve.db.models import DISCARDED_STATES, UNFINISHED, DrawnBlock, ForecastJob
from serve.db.schema import create_tables


class QueueFullError(Exception):
    """The number of unfinished forecasts has reached its limit."""


class IdempotencyConflictError(Exception):
    """An idempotency key came with another request than before."""


@dataclass(frozen=True)
class NewJob:
    """A forecast to enqueue.

    `requested_by` is the id of the API key; `block_size` is the number of seeds in a block.
    """

    id: str
    owner: str
    request: ResolvedRequest
    block_size: int
    requested_by: str
    idempotency_key: str | None = None

    @property
    def total(self) -> int:
        """Return the number of samples over all arms."""
        return len(self.request.arms) * self.request.samples


class JobRepository:
    """The jobs of the database at `url`. Raises DatabaseSchemaError for another schema."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_pre_ping=True)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _make_sqlite_durable)
        create_tables(self._engine)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a session for the queries of `serve.db.listing`."""
        with self._session() as session:
            yield session

    def enqueue(self, new: NewJob, *, limit: int) -> ForecastJob:
        """Create and commit a job, or return the job of this owner and idempotency key.

        Raises QueueFullError at `limit` unfinished jobs, and IdempotencyConflictError if the key
        came with another request before. Requests that arrive at the same instant may together
        exceed the limit: counting under a lock would serialise all of them.
        """
        job = ForecastJob(
            id=new.id, owner=new.owner, idempotency_key=new.idempotency_key, request=new.request,
            total=new.total, block_size=new.block_size, state="accepted", created=time.time(),
        )  # fmt: skip
        request = new.request
        try:
            with self._session() as session:
                if self._is_full(session, limit, new.owner, new.idempotency_key):
                    raise QueueFullError
                session.add(job)
                # The insert fails here if the key exists, and takes the write lock of SQLite that
                # the audit needs.
                session.flush()
                facts = {
                    "arms": request.arms,
                    "samples": request.samples,
                    "by": new.requested_by,
                    "uploaded": request.upload is not None,
                }
                _append_audit(session, job, facts)
        except IntegrityError:
            with self._session() as session:
                existing = self._find_by_idempotency_key(
                    session, new.owner, str(new.idempotency_key)
                )
            if existing is None or existing.request != request:
                raise IdempotencyConflictError from None
            return existing
        return job

    def is_full(self, limit: int, *, owner: str, idempotency_key: str | None) -> bool:
        """Return True if `enqueue` would refuse a job; it accepts a key that it knows already."""
        with self._session() as session:
            return self._is_full(session, limit, owner, idempotency_key)

    def _is_full(self, session: Session, limit: int, owner: str, key: str | None) -> bool:
        exists = key is not None and self._find_by_idempotency_key(session, owner, key) is not None
        return not exists and _count_unfinished(session) >= limit

    def _find_by_idempotency_key(
        self, session: Session, owner: str, key: str
    ) -> ForecastJob | None:
        query = select(ForecastJob).where(
            ForecastJob.owner == owner, ForecastJob.idempotency_key == key
        )
        return session.scalars(query).one_or_none()

    def get(self, job_id: str, *, owner: str | None = None) -> ForecastJob | None:
        """Return a job, None if it does not exist or belongs to another owner."""
        with self._session() as session:
            job = session.get(ForecastJob, job_id)
        return job if job is not None and owner in (None, job.owner) else None

    def unfinished(self) -> list[ForecastJob]:
        """Return the jobs that are accepted and not finished, oldest first."""
        with self._session() as session:
            query = (
                select(ForecastJob)
                .where(ForecastJob.state.in_(UNFINISHED))
                .order_by(ForecastJob.created)
            )
            return list(session.scalars(query))

    def removed_job_ids(self) -> set[str]:
        """Return the ids of cancelled and deleted jobs, whose files are to be removed."""
        query = select(ForecastJob.id).where(ForecastJob.state.in_(DISCARDED_STATES))
        with self._session() as session:
            return set(session.scalars(query))

    def save_block(self, block: DrawnBlock) -> None:
        """Save a block. A block that exists already is equal, since seeds determine samples."""
        with self._session() as session:
            session.merge(block)

    def load_blocks(self, job_id: str, bundle: str) -> list[DrawnBlock]:
        """Return the blocks of a job that were drawn with the bundle of digest `bundle`."""
        query = select(DrawnBlock).where(DrawnBlock.job == job_id, DrawnBlock.bundle == bundle)
        with self._session() as session:
            return list(session.scalars(query))

    def lesion_counts(self, job_id: str, bundle: str) -> dict[str, list[LesionCounts]]:
        """Return the lesions of each sample by arm, without loading any mask."""
        query = select(DrawnBlock.arm, DrawnBlock.lesions).where(
            DrawnBlock.job == job_id, DrawnBlock.bundle == bundle
        )
        counts: dict[str, list[LesionCounts]] = {}
        with self._session() as session:
            for arm, lesions in session.execute(query):
                counts.setdefault(arm, []).extend(LesionCounts(*row) for row in lesions)
        return counts

    def mark_running(self, job_id: str) -> bool:
        """Mark an unfinished job as running. Returns False if the job has finished."""
        return self._transition(job_id, UNFINISHED, {"state": "running"})

    def finish(
        self,
        job_id: str,
        state: ForecastState,
        *,
        error: str | None = None,
        total: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> bool:
        """Finish a job and delete its blocks. Returns False if it had finished before.

        `error` and `total` are stored with the job if they are given; `facts` go into the audit.
        """
        columns: dict[str, Any] = {"state": state, "finished": time.time()}
        if error is not None:
            columns["error"] = error
        if total is not None:
            columns["total"] = total
        finished = self._transition(job_id, UNFINISHED, columns, facts=facts or {})
        self.delete_blocks(job_id)
        return finished

    def mark_deleted(self, job_id: str, *, by: str) -> bool:
        """Mark a finished job as deleted. Returns False if it was deleted already."""
        return self._transition(
            job_id, ("succeeded", "failed"), {"state": "deleted"}, facts={"by": by}
        )

    def delete_blocks(self, job_id: str) -> None:
        """Delete the blocks of a job, unless the job is unfinished."""
        finished = select(ForecastJob.id).where(
            ForecastJob.id == job_id, ForecastJob.state.not_in(UNFINISHED)
        )
        with self._session() as session:
            session.execute(delete(DrawnBlock).where(DrawnBlock.job.in_(finished)))

    def _transition(
        self,
        job_id: str,
        allowed: tuple[ForecastState, ...],
        columns: Mapping[str, Any],
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> bool:
        """Update a job if its state is one of `allowed`. Returns True if the job was updated.

        Condition and update are one statement, so that of several processes only one succeeds.
        With `facts`, the change is written to the audit in the same transaction.
        """
        statement = (
            update(ForecastJob)
            .where(ForecastJob.id == job_id, ForecastJob.state.in_(allowed))
            .values(**columns)
        )
        with self._session() as session:
            if cast("CursorResult[Any]", session.execute(statement)).rowcount != 1:
                return False
            if facts is not None:
                _append_audit(session, session.get_one(ForecastJob, job_id), facts)
            return True


def _append_audit(session: Session, job: ForecastJob, facts: Mapping[str, Any]) -> None:
    """Write a job's state to the audit, without anything that identifies the patient."""
    append_entry(session, {"forecast": job.id, "client": job.owner, "event": job.state, **facts})


def _count_unfinished(session: Session) -> int:
    return session.scalars(select(func.count()).where(ForecastJob.state.in_(UNFINISHED))).one()


def _make_sqlite_durable(connection: Any, _: object) -> None:
    # WAL lets readers go on while one process writes, FULL makes a commit survive a power cut, and
    # the timeout makes a second writer wait rather than fail.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")
