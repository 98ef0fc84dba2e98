"""Queries over many forecasts at once; `serve.db.repository` holds those of one forecast."""

from collections.abc import Collection

from sqlalchemy import func, select

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
    names = ForecastJob.__table__.columns.keys()
    return tuple(getattr(job, name) for name in names)
