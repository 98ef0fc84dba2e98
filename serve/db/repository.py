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

from serve.db.audit import add_entry
from serve.db.models import REMOVED, UNFINISHED, Job, Part, State, Table


class QueueFullError(Exception):
    """As many forecasts are unfinished as may be."""


class KeyReusedError(Exception):
    """An idempotency key came with another order than before."""


class Records:
    """The database at `url`."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, pool_pre_ping=True)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _durable_sqlite)
        try:
            Table.metadata.create_all(self._engine)
        except DatabaseError:  # another process made them at the same time
            Table.metadata.create_all(self._engine)

    def close(self) -> None:
        """Its connections."""
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def accept(
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
    ) -> Job:
        """A new job of that id, committed; or the one that the idempotency `key` of `owner` names
        already.

        Raises QueueFullError at `limit` unfinished jobs, KeyReusedError where the key came with
        another order. Requests that arrive together may pass the limit by their number. `by` is
        the id of the API key that asked.
        """
        new = Job(
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
                _note(session, new, asked | {"uploaded": "upload" in order})
        except IntegrityError:  # the key is known
            with self._session() as session:
                named = self._named(session, owner, str(key))
            if named is None or named.order != order:
                raise KeyReusedError from None
            return named
        return new

    def is_full(self, limit: int, *, owner: str, key: str | None) -> bool:
        """Whether `accept` would refuse a job: one that the key names already it does not."""
        with self._session() as session:
            return self._is_full(session, limit, owner, key)

    def _is_full(self, session: Session, limit: int, owner: str, key: str | None) -> bool:
        known = key is not None and self._named(session, owner, key) is not None
        return not known and _waiting(session) >= limit

    def _named(self, session: Session, owner: str, key: str) -> Job | None:
        named = select(Job).where(Job.owner == owner, Job.idempotency_key == key)
        return session.scalars(named).one_or_none()

    def find(self, job: str, *, owner: str | None = None) -> Job | None:
        """The job with that id, if it is the owner's."""
        with self._session() as session:
            found = session.get(Job, job)
        return found if found is not None and owner in (None, found.owner) else None

    def unfinished(self) -> list[Job]:
        """What was accepted and has not ended, oldest first."""
        with self._session() as session:
            wanted = select(Job).where(Job.state.in_(UNFINISHED)).order_by(Job.created)
            return list(session.scalars(wanted))

    def removed(self) -> set[str]:
        """The jobs of which nothing is kept."""
        with self._session() as session:
            return set(session.scalars(select(Job.id).where(Job.state.in_(REMOVED))))

    def add_part(self, part: Part) -> None:
        """Keep a block; one that is there already is the same, since seeds name samples."""
        with self._session() as session:
            session.merge(part)

    def parts(self, job: str, bundle: str) -> list[Part]:
        """What has been drawn of a job with that bundle; another's samples do not mix with it."""
        with self._session() as session:
            return list(session.scalars(select(Part).where(Part.job == job, Part.bundle == bundle)))

    def lesions(self, job: str, bundle: str) -> list[tuple[str, list[Any]]]:
        """Of each block drawn with that bundle its arm and its lesions."""
        with self._session() as session:
            wanted = select(Part.arm, Part.lesions).where(Part.job == job, Part.bundle == bundle)
            return [(arm, lesions) for arm, lesions in session.execute(wanted)]

    def begin(self, job: str) -> bool:
        """Whether the job may run; a cancelled one may not."""
        return self._move(job, UNFINISHED, state="running")

    def end(
        self, job: str, state: State, *, facts: Mapping[str, Any] | None = None, **values: Any
    ) -> bool:
        """Whether this call ended the job: an end is final. Its parts are no longer needed.

        `facts` are for the audit, `values` are other columns that the end sets.
        """
        ended = self._move(
            job, UNFINISHED, note=facts or {}, state=state, finished=time.time(), **values
        )
        self.tidy(job)
        return ended

    def forget(self, job: str, *, by: str) -> bool:
        """Whether this call took from a job that has ended what it had kept."""
        return self._move(job, ("succeeded", "failed"), note={"by": by}, state="deleted")

    def tidy(self, job: str) -> None:
        """Drops the parts of a job that has ended."""
        ended = select(Job.id).where(Job.id == job, Job.state.not_in(UNFINISHED))
        with self._session() as session:
            session.execute(delete(Part).where(Part.job.in_(ended)))

    def _move(
        self,
        job: str,
        of: tuple[State, ...],
        *,
        note: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> bool:
        """Whether a job was in one of the states `of` and is now in another; with a `note`, that
        stands in the audit."""
        moved = update(Job).where(Job.id == job, Job.state.in_(of)).values(**values)
        with self._session() as session:
            if cast("CursorResult[Any]", session.execute(moved)).rowcount != 1:
                return False
            if note is not None:
                _note(session, session.get_one(Job, job), note)
            return True


def _note(session: Session, job: Job, facts: Mapping[str, Any]) -> None:
    """What of a job goes into the audit: nothing that says whose images they are."""
    add_entry(session, {"forecast": job.id, "client": job.owner, "event": job.state, **facts})


def _waiting(session: Session) -> int:
    return session.scalars(select(func.count()).where(Job.state.in_(UNFINISHED))).one()


def _durable_sqlite(connection: Any, _: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")
