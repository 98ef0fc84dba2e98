"""Forecasts that were accepted, and the samples drawn of each so far, in a database.

SQLite or PostgreSQL. What is committed here survives any process: an unfinished forecast goes on
with the parts that it lacks.
"""

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
from sqlalchemy import (
    JSON,
    ForeignKey,
    LargeBinary,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lesioncast.evaluation.lesions import Lesions
from lesioncast.forecasting.draws import Drawn

State = Literal["accepted", "running", "succeeded", "failed", "cancelled", "deleted"]
UNFINISHED: tuple[State, ...] = ("accepted", "running")


class Table(DeclarativeBase):
    """The tables below."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class Job(Table):
    """One forecast asked for: whose, what, and how far it is."""

    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("owner", "idempotency_key"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    idempotency_key: Mapped[str | None]
    order: Mapped[dict[str, Any]]
    total: Mapped[int]
    block: Mapped[int]
    state: Mapped[str] = mapped_column(index=True)
    error: Mapped[str | None]
    created: Mapped[float]
    finished: Mapped[float | None]


class Part(Table):
    """The samples of one block of seeds under one arm, drawn with the bundle of that digest.

    `lesions` are (plain, opened, volume).
    """

    __tablename__ = "parts"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    bundle: Mapped[str]
    lesions: Mapped[list[Any]]
    shape: Mapped[list[Any]]
    width: Mapped[int]
    packed: Mapped[bytes] = mapped_column(LargeBinary)

    def drawn(self) -> Drawn:
        """As it was drawn."""
        flat = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        found = tuple(Lesions(*each) for each in self.lesions)
        return Drawn(flat.reshape(self.shape), self.width, found)


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
    ) -> Job:
        """A new job of that id, committed; or the one that the idempotency `key` of `owner` names
        already.

        Raises QueueFullError at `limit` unfinished jobs, KeyReusedError where the key came with
        another order. Requests that arrive together may pass the limit by their number.
        """
        new = Job(
            id=job, owner=owner, idempotency_key=key, order=order, total=total,
            block=block, state="accepted", created=time.time(),
        )  # fmt: skip
        try:
            with self._session() as session:
                known = key is not None and self._named(session, owner, key) is not None
                if not known and _waiting(session) >= limit:
                    raise QueueFullError
                session.add(new)
        except IntegrityError:  # the key is known
            with self._session() as session:
                named = self._named(session, owner, str(key))
            if named is None or named.order != order:
                raise KeyReusedError from None
            return named
        return new

    def is_full(self, limit: int) -> bool:
        """Whether `accept` would refuse a new job."""
        with self._session() as session:
            return _waiting(session) >= limit

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

    def add_part(self, part: Part) -> None:
        """Keep a block; one that is there already is the same, since seeds name samples."""
        with self._session() as session:
            session.merge(part)

    def parts(self, job: str, bundle: str) -> list[Part]:
        """What has been drawn of a job with that bundle; another's samples do not mix with it."""
        with self._session() as session:
            return list(session.scalars(select(Part).where(Part.job == job, Part.bundle == bundle)))

    def lesions(self, job: str) -> list[tuple[str, int, list[Any]]]:
        """Of each block its arm, the number of its first seed, and its lesions."""
        with self._session() as session:
            wanted = select(Part.arm, Part.first, Part.lesions).where(Part.job == job)
            return [(arm, first, lesions) for arm, first, lesions in session.execute(wanted)]

    def begin(self, job: str) -> bool:
        """Whether the job may run; a cancelled one may not."""
        return self._move(job, state="running")

    def end(self, job: str, state: State, **values: Any) -> bool:
        """Whether this call ended the job: an end is final. Its parts are no longer needed.

        `values` are other columns that the end sets.
        """
        ended = self._move(job, state=state, finished=time.time(), **values)
        self.tidy(job)
        return ended

    def forget(self, job: str) -> None:
        """A job that has ended with something to keep has lost it."""
        kept = update(Job).where(Job.id == job, Job.state.in_(("succeeded", "failed")))
        with self._session() as session:
            session.execute(kept.values(state="deleted"))

    def tidy(self, job: str) -> None:
        """Drops the parts of a job that has ended."""
        ended = select(Job.id).where(Job.id == job, Job.state.not_in(UNFINISHED))
        with self._session() as session:
            session.execute(delete(Part).where(Part.job.in_(ended)))

    def _move(self, job: str, **values: Any) -> bool:
        unfinished = update(Job).where(Job.id == job, Job.state.in_(UNFINISHED)).values(**values)
        with self._session() as session:
            return cast("CursorResult[Any]", session.execute(unfinished)).rowcount == 1


def _waiting(session: Session) -> int:
    return session.scalars(select(func.count()).where(Job.state.in_(UNFINISHED))).one()


def part_of(job: str, bundle: str, arm: str, first: int, drawn: Drawn) -> Part:
    """A block that was drawn, as it is kept."""
    return Part(
        job=job, arm=arm, first=first, bundle=bundle, width=drawn.width,
        lesions=[[each.plain, each.opened, each.volume] for each in drawn.lesions],
        shape=list(drawn.packed.shape), packed=zlib.compress(drawn.packed.tobytes(), 1),
    )  # fmt: skip


def _durable_sqlite(connection: Any, _: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=20000"):
        connection.execute(f"PRAGMA {pragma}")
