"""Tables of the service's database, as SQLAlchemy models."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import JSON, Dialect, ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from lesioncast.forecasting.sampling import SampleBatch
from lesioncast.imaging.lesions import LesionCounts
from serve.api.schemas import ForecastState, ResolvedRequest

UNFINISHED: tuple[ForecastState, ...] = ("accepted", "running")
DISCARDED_STATES: tuple[ForecastState, ...] = ("cancelled", "deleted", "expired")
"""States of forecasts whose files, samples and request are removed."""


class RequestErasedError(Exception):
    """The request of a cancelled, deleted or expired forecast is needed, but is removed."""


class RequestJson(TypeDecorator[ResolvedRequest]):
    """A column type that stores a `ResolvedRequest` as JSON."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: ResolvedRequest | None, dialect: Dialect) -> Any:
        """Return the request as JSON values."""
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: Dialect) -> ResolvedRequest | None:
        """Parse a stored request."""
        return None if value is None else ResolvedRequest.model_validate(value)


class Base(DeclarativeBase):
    """Base of the tables below."""

    type_annotation_map = {list[Any]: JSON, ResolvedRequest: RequestJson}


class SchemaVersion(Base):
    """The version of the tables, one row; see `serve.db.schema`."""

    __tablename__ = "schema_version"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class ForecastJob(Base):
    """One requested forecast: its owner, its request and its state.

    `total` is the number of samples over all arms. `block_size` is the number of seeds in a block;
    it is stored so that a job keeps its blocks when the setting changes. `created` and `finished`
    are seconds since the epoch.

    `stored_request` names the patient. It is erased when the job is cancelled, deleted or expired.
    `idempotency_digest` is the sha256 of the client's key, which may name the patient too.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_digest"),
        Index("jobs_of_owner", "owner", "created", "id"),  # the order of lists
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    idempotency_digest: Mapped[str | None]
    stored_request: Mapped[ResolvedRequest | None] = mapped_column("request")
    total: Mapped[int]
    block_size: Mapped[int]
    state: Mapped[ForecastState] = mapped_column(String, index=True)
    error: Mapped[str | None]
    created: Mapped[float]
    finished: Mapped[float | None] = mapped_column(index=True)

    @property
    def request(self) -> ResolvedRequest:
        """Return the request. Raises RequestErasedError if it was removed."""
        if self.stored_request is None:
            raise RequestErasedError(f"the forecast {self.id} is {self.state}")
        return self.stored_request


class DrawnBlock(Base):
    """The samples of one block of seeds under one arm, drawn with one bundle.

    The bundle's digest is part of the key: while a bundle is being replaced, samples of the old and
    of the new one exist side by side and do not mix. `lesions` holds (plain, opened, volume) of
    each sample. `masks_zlib` holds the masks packed along the last axis, as `shape`; `mask_width`
    is that axis' length before packing.
    """

    __tablename__ = "blocks"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    bundle: Mapped[str] = mapped_column(primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    first_seed_index: Mapped[int] = mapped_column(primary_key=True)
    lesions: Mapped[list[Any]]
    shape: Mapped[list[Any]]
    mask_width: Mapped[int]
    masks_zlib: Mapped[bytes] = mapped_column(LargeBinary)

    def to_batch(self) -> SampleBatch:
        """Return the samples as they were drawn."""
        packed = np.frombuffer(zlib.decompress(self.masks_zlib), np.uint8).reshape(self.shape)
        return SampleBatch(packed, self.mask_width, self.lesion_counts())

    def lesion_counts(self) -> tuple[LesionCounts, ...]:
        """Return the lesions of each sample."""
        return tuple(LesionCounts(*row) for row in self.lesions)


class AuditEntry(Base):
    """One line of the audit: `record` is JSON, `previous_digest` chains it to the entry before.

    `digest` is an HMAC of both under the key with the id `key_id`. See `serve.db.audit`.
    """

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    record: Mapped[str]
    previous_digest: Mapped[str]
    digest: Mapped[str]
    key_id: Mapped[str]


def to_drawn_block(
    job_id: str, bundle: str, arm: str, first_seed_index: int, drawn: SampleBatch
) -> DrawnBlock:
    """Convert a batch of samples to a row."""
    return DrawnBlock(
        job=job_id,
        bundle=bundle,
        arm=arm,
        first_seed_index=first_seed_index,
        lesions=[[sample.plain, sample.opened, sample.volume] for sample in drawn.lesions],
        shape=list(drawn.packed.shape),
        mask_width=drawn.width,
        # Level 1: masks are mostly zeros, and higher levels cost more time than they save space.
        masks_zlib=zlib.compress(drawn.packed.tobytes(), 1),
    )


def masks_by_arm(blocks: Sequence[DrawnBlock]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the masks of blocks by arm, [k, s, h, w], in the order of seeds."""
    ordered = sorted(blocks, key=lambda block: block.first_seed_index)
    return {
        arm: np.concatenate([block.to_batch().masks() for block in ordered if block.arm == arm])
        for arm in dict.fromkeys(block.arm for block in ordered)
    }
