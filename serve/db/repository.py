"""Accepted forecasts and their samples in a database, SQLite or PostgreSQL.

Committed rows survive the end of any process: an unfinished forecast continues with the blocks that
are missing.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import create_engine, delete, event, func, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from lesioncast.imaging.lesions import LesionCounts
from serve.api.schemas import ForecastState, ResolvedRequest
from serve.db.audit import append_entry, last_entry, prune
from serve.db.audit_key import AuditKeys
from serve.db.models import DISCARDED_STATES, UNFINISHED, AuditEntry, DrawnBlock, ForecastJob
from serve.db.schema import create_tables
from serve.db.sqlite import empty_journal, set_up_sqlite
from storage.digest import sha256_bytes

EXPIRING: tuple[ForecastState, ...] = ("succeeded", "failed", "cancelled", "deleted")
"""States of jobs that expire."""
ERASED: Mapping[str, Any] = {"stored_request": None, "error": None}
"""Columns that may identify the patient, without their content."""


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

    @property
    def idempotency_digest(self) -> str | None:
        """Return the digest that stands for the idempotency key in the database."""
        return None if self.idempotency_key is None else _digest_key(self.idempotency_key)


class JobRepository:
    """The jobs of the database at `url`; `audit_keys` sign the audit.

    Raises DatabaseSchemaError for another schema.
    """

    def __init__(self, url: str, audit_keys: AuditKeys) -> None:
        self._engine, self._audit_keys = create_engine(url, pool_pre_ping=True), audit_keys
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", set_up_sqlite)
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
            id=new.id, owner=new.owner, idempotency_digest=new.idempotency_digest,
            stored_request=new.request, total=new.total, block_size=new.block_size,
            state="accepted", created=time.time(),
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
                self._append_audit(session, job, facts)
        except IntegrityError:
            with self._session() as session:
                existing = self._find_by_idempotency_key(
                    session, new.owner, str(new.idempotency_key)
                )
            # An erased request cannot be compared: its forecast is gone whatever it was.
            if existing is None or existing.stored_request not in (None, request):
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
            ForecastJob.owner == owner, ForecastJob.idempotency_digest == _digest_key(key)
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
        The request of a cancelled job is erased.
        """
        columns: dict[str, Any] = {"state": state, "finished": time.time()}
        if error is not None:
            columns["error"] = error
        if total is not None:
            columns["total"] = total
        if state in DISCARDED_STATES:
            columns |= ERASED
        finished = self._transition(job_id, UNFINISHED, columns, facts=facts or {})
        self.delete_blocks(job_id)
        if finished and state in DISCARDED_STATES:
            self.scrub()
        return finished

    def mark_deleted(self, job_id: str, *, by: str) -> bool:
        """Mark a finished job as deleted, and erase its request.

        Returns False if it was deleted already.
        """
        deleted = self._transition(
            job_id, ("succeeded", "failed"), {"state": "deleted", **ERASED}, facts={"by": by}
        )
        if deleted:
            self.scrub()
        return deleted

    def expire(self, before: float) -> list[str]:
        """Mark jobs that finished before a time as expired, and erase what they hold.

        Only id, owner, state, numbers of samples and times are kept, so that the id is not found to
        be unknown. Returns the ids.
        """
        query = select(ForecastJob.id).where(
            ForecastJob.state.in_(EXPIRING), ForecastJob.finished < before
        )
        with self._session() as session:
            ids = list(session.scalars(query))
        columns = {"state": "expired", "idempotency_digest": None, **ERASED}
        expired = [job for job in ids if self._transition(job, EXPIRING, columns, facts={})]
        for job_id in expired:
            self.delete_blocks(job_id)
        return expired

    def prune(self, before: float) -> int:
        """Remove expired jobs that finished before a time, and older entries of the audit.

        Returns the number of entries that were removed.
        """
        with self._session() as session:
            session.execute(
                delete(ForecastJob).where(
                    ForecastJob.state == "expired", ForecastJob.finished < before
                )
            )
            return prune(session, datetime.fromtimestamp(before, UTC), self._audit_keys)

    def scrub(self) -> None:
        """Remove erased rows from SQLite's files, where it keeps the pages of before for a while.

        Connections that read at this moment keep them; the worker calls this from time to time.
        """
        if self._engine.dialect.name == "sqlite":
            empty_journal(self._engine)

    def last_audit_entry(self) -> AuditEntry | None:
        """Return the last entry of the audit, None if there is none."""
        with self._session() as session:
            return last_entry(session)

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
                self._append_audit(session, session.get_one(ForecastJob, job_id), facts)
            return True

    def _append_audit(self, session: Session, job: ForecastJob, facts: Mapping[str, Any]) -> None:
        """Write a job's state to the audit, without anything that identifies the patient."""
        record = {"forecast": job.id, "client": job.owner, "event": job.state, **facts}
        append_entry(session, record, self._audit_keys)


def _digest_key(idempotency_key: str) -> str:
    return sha256_bytes(idempotency_key.encode())


def _count_unfinished(session: Session) -> int:
    return session.scalars(select(func.count()).where(ForecastJob.state.in_(UNFINISHED))).one()
