"""The tables of the service's database."""

import zlib
from typing import Any, Literal

import numpy as np
from sqlalchemy import JSON, ForeignKey, LargeBinary, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from lesioncast.forecasting.sampling import SampleBatch
from lesioncast.imaging.lesions import LesionCounts

State = Literal["accepted", "running", "succeeded", "failed", "cancelled", "deleted"]
UNFINISHED: tuple[State, ...] = ("accepted", "running")
DISCARDED_STATES: tuple[State, ...] = ("cancelled", "deleted")  # nothing is kept of them


class Base(DeclarativeBase):
    """The tables below."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}


class ForecastJob(Base):
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


class DrawnBlock(Base):
    """The samples of one block of seeds under one arm, drawn with the bundle of that digest.

    So two bundles that draw for one job, as while one is exchanged for the other, do so side by
    side. `lesions` are (plain, opened, volume).
    """

    __tablename__ = "drawn"  # "parts" in older databases, whose key lacks the bundle

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    bundle: Mapped[str] = mapped_column(primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    lesions: Mapped[list[Any]]
    shape: Mapped[list[Any]]
    width: Mapped[int]
    packed: Mapped[bytes] = mapped_column(LargeBinary)

    def drawn(self) -> SampleBatch:
        """As it was drawn."""
        flat = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        found = tuple(LesionCounts(*each) for each in self.lesions)
        return SampleBatch(flat.reshape(self.shape), self.width, found)


class AuditEntry(Base):
    """One line of the audit, see `serve.db.audit`: `record` is JSON, `before` a digest."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    record: Mapped[str]
    before: Mapped[str]
    digest: Mapped[str]


def to_drawn_block(job: str, bundle: str, arm: str, first: int, drawn: SampleBatch) -> DrawnBlock:
    """A block that was drawn, as it is kept."""
    return DrawnBlock(
        job=job, arm=arm, first=first, bundle=bundle, width=drawn.width,
        lesions=[[each.plain, each.opened, each.volume] for each in drawn.lesions],
        shape=list(drawn.packed.shape), packed=zlib.compress(drawn.packed.tobytes(), 1),
    )  # fmt: skip
