"""Queries over many forecasts at once; `serve.db.repository` holds those of one forecast."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field
from sqlalchemy import JSON, func, inspect, select, tuple_, type_coerce

from serve.api.schemas import ForecastState
from serve.db.models import DrawnBlock, ForecastJob
from serve.db.repository import JobRepository

JobVersion = tuple[object, ...]
"""Equal for two reads of a forecast if nothing about it has changed."""


def read_versions(
    jobs: JobRepository, job_ids: Collection[str], bundle: str
) -> dict[str, tuple[ForecastJob, JobVersion]]:
    """Return those of the forecasts that exist, with all that changes while they run, by id.

    That is every column, and the number of blocks that were drawn with the bundle of this digest.
    """
    blocks = (
        select(DrawnBlock.job, func.count())
        .where(DrawnBlock.job.in_(job_ids), DrawnBlock.bundle == bundle)
        .group_by(DrawnBlock.job)
    )
    rows = select(ForecastJob).where(ForecastJob.id.in_(job_ids))
    with jobs.reading() as session:
        drawn = dict(session.execute(blocks).all())
        found = list(session.scalars(rows))
    return {job.id: (job, (*_columns(job), drawn.get(job.id, 0))) for job in found}


def _columns(job: ForecastJob) -> JobVersion:
    attributes = inspect(ForecastJob).column_attrs
    return tuple(getattr(job, attribute.key) for attribute in attributes)


class Place(NamedTuple):
    """A place in the list of forecasts, which new forecasts do not move."""

    created: float
    id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


@dataclass(frozen=True)
class JobQuery:
    """Which forecasts to list."""

    #: Client whose forecasts are listed; nobody sees those of another.
    owner: str
    #: Only these states; all of them if it is empty.
    states: tuple[ForecastState, ...]
    #: Only this subject.
    subject: str | None
    #: Only forecasts after this place.
    after: Place | None
    #: Largest number of forecasts.
    limit: int


class ListedJob(NamedTuple):
    """A forecast in a list, with times in seconds since the epoch."""

    id: str
    state: ForecastState
    #: None once the request is erased.
    subject: str | None
    created: float
    finished: float | None

    @property
    def place(self) -> Place:
        """Return the forecast's place in the list."""
        return Place(self.created, self.id)


def list_jobs(jobs: JobRepository, query: JobQuery) -> list[ListedJob]:
    """Return the forecasts of a client, the newest first; the id decides between equal times."""
    # The request is parsed by the database alone: a list needs one field of it.
    subject = type_coerce(ForecastJob.__table__.c.request, JSON)["subject"].as_string()
    columns = (ForecastJob.id, ForecastJob.state, subject, ForecastJob.created)
    statement = select(*columns, ForecastJob.finished).where(ForecastJob.owner == query.owner)
    if query.states:
        statement = statement.where(ForecastJob.state.in_(query.states))
    if query.subject is not None:
        statement = statement.where(subject == query.subject)
    place = tuple_(ForecastJob.created, ForecastJob.id)
    if query.after is not None:
        statement = statement.where(place < tuple_(*query.after))
    statement = statement.order_by(ForecastJob.created.desc(), ForecastJob.id.desc())
    with jobs.reading() as session:
        rows = session.execute(statement.limit(query.limit))
        return [ListedJob(*row) for row in rows]
