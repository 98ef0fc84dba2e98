"""Forecasts that were accepted, and the samples drawn of each so far, in a database.

SQLite or PostgreSQL. What is committed here survives any process: an unfinished forecast goes on
with the parts that it lacks.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import create_engine, delete, event, func, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import Session

from serve.db.audit import append_entry
from serve.db.models import DISCARDED_STATES, UNFINISHED, Base, DrawnBlock, ForecastJob, State


class QueueFullError(Exception):
    """As many forecasts are unfinished as may be."""


class IdempotencyConflictError(Exception):
    """An idempotency key came with another order than before."""


class JobRepository:
    """The database at `url`."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_pre_ping=True)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _durable_sqlite)
        try:
            Base.metadata.create_all(self._engine)
        except DatabaseError:  # another process made them at the same time
            Base.metadata.create_all(self._engine)

    def close(self) -> None:
        """Its connections."""
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def enqueue(
        self,
        job: str,
        owner: str,
        order: dict[str, Any],
        *,
        total: int,
        block: int,
        key: str | None,
        limit: int,
        by: str,
    ) -> ForecastJob:
        """A new job of that id, committed; or the one that the idempotency `key` of `owner` names
        already.

        Raises QueueFullError at `limit` unfinished jobs, KeyReusedError where the key came with
        another order. Requests that arrive together may pass the limit by their number. `by` is
        the id of the API key that asked.
        """
        new = ForecastJob(
            id=job, owner=owner, idempotency_key=key, order=order, total=total,
            block=block, state="accepted", created=time.time(),
        )  # fmt: skip
        try:
            with self._session() as session:
                if self._is_full(session, limit, owner, key):
                    raise QueueFullError
                session.add(new)
                session.flush()
                asked = {"arms": order["arms"], "samples": order["samples"], "by": by}
                _append_audit(session, new, asked | {"uploaded": "upload" in order})
        except IntegrityError:  # the key is known
            with self._session() as session:
                named = self._find_by_idempotency_key(session, owner, str(key))
            if named is None or named.order != order:
                raise IdempotencyConflictError from None
            return named
        return new

    def is_full(self, limit: int, *, owner: str, key: str | None) -> bool:
        """Whether `accept` would refuse a job: one that the key names already it does not."""
        with self._session() as session:
            return self._is_full(session, limit, owner, key)

    def _is_full(self, session: Session, limit: int, owner: str, key: str | None) -> bool:
        known = key is not None and self._find_by_idempotency_key(session, owner, key) is not None
        return not known and _count_unfinished(session) >= limit

    def _find_by_idempotency_key(
        self, session: Session, owner: str, key: str
    ) -> ForecastJob | None:
        named = select(ForecastJob).where(
            ForecastJob.owner == owner, ForecastJob.idempotency_key == key
        )
        return session.scalars(named).one_or_none()

    def get(self, job: str, *, owner: str | None = None) -> ForecastJob | None:
        """The job with that id, if it is the owner's."""
        with self._session() as session:
            found = session.get(ForecastJob, job)
        return found if found is not None and owner in (None, found.owner) else None

    def unfinished(self) -> list[ForecastJob]:
        """What was accepted and has not ended, oldest first."""
        with self._session() as session:
            wanted = (
                select(ForecastJob)
                .where(ForecastJob.state.in_(UNFINISHED))
                .order_by(ForecastJob.created)
            )
            return list(session.scalars(wanted))

    def removed_job_ids(self) -> set[str]:
        """The jobs of which nothing is kept."""
        with self._session() as session:
            return set(
                session.scalars(
                    select(ForecastJob.id).where(ForecastJob.state.in_(DISCARDED_STATES))
                )
            )

    def save_block(self, part: DrawnBlock) -> None:
        """Keep a block; one that is there already is the same, since seeds name samples."""
        with self._session() as session:
            session.merge(part)

    def load_blocks(self, job: str, bundle: str) -> list[DrawnBlock]:
        """What has been drawn of a job with that bundle; another's samples do not mix with it."""
        with self._session() as session:
            return list(
                session.scalars(
                    select(DrawnBlock).where(DrawnBlock.job == job, DrawnBlock.bundle == bundle)
                )
            )

    def lesion_counts(self, job: str, bundle: str) -> list[tuple[str, list[Any]]]:
        """Of each block drawn with that bundle its arm and its lesions."""
        with self._session() as session:
            wanted = select(DrawnBlock.arm, DrawnBlock.lesions).where(
                DrawnBlock.job == job, DrawnBlock.bundle == bundle
            )
            return [(arm, lesions) for arm, lesions in session.execute(wanted)]

    def mark_running(self, job: str) -> bool:
        """Whether the job may run; a cancelled one may not."""
        return self._transition(job, UNFINISHED, state="running")

    def finish(
        self, job: str, state: State, *, facts: Mapping[str, Any] | None = None, **values: Any
    ) -> bool:
        """Whether this call ended the job: an end is final. Its parts are no longer needed.

        `facts` are for the audit, `values` are other columns that the end sets.
        """
        ended = self._transition(
            job, UNFINISHED, note=facts or {}, state=state, finished=time.time(), **values
        )
        self.delete_blocks(job)
        return ended

    def mark_deleted(self, job: str, *, by: str) -> bool:
        """Whether this call took from a job that has ended what it had kept."""
        return self._transition(job, ("succeeded", "failed"), note={"by": by}, state="deleted")

    def delete_blocks(self, job: str) -> None:
        """Drops the parts of a job that has ended."""
        ended = select(ForecastJob.id).where(
            ForecastJob.id == job, ForecastJob.state.not_in(UNFINISHED)
        )
        with self._session() as session:
            session.execute(delete(DrawnBlock).where(DrawnBlock.job.in_(ended)))

    def _transition(
        self,
        job: str,
        of: tuple[State, ...],
        *,
        note: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> bool:
        """Whether a job was in one of the states `of` and is now in another; with a `note`, that
        stands in the audit."""
        moved = (
            update(ForecastJob)
            .where(ForecastJob.id == job, ForecastJob.state.in_(of))
            .values(**values)
        )
        with self._session() as session:
            if cast("CursorResult[Any]", session.execute(moved)).rowcount != 1:
                return False
            if note is not None:
                _append_audit(session, session.get_one(ForecastJob, job), note)
            return True


def _append_audit(session: Session, job: ForecastJob, facts: Mapping[str, Any]) -> None:
    """What of a job goes into the audit: nothing that says whose images they are."""
    append_entry(session, {"forecast": job.id, "client": job.owner, "event": job.state, **facts})


def _count_unfinished(session: Session) -> int:
    return session.scalars(select(func.count()).where(ForecastJob.state.in_(UNFINISHED))).one()


def _durable_sqlite(connection: Any, _: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")
