"""What the service removes by itself, and when; the worker applies it every few minutes."""

import re
import time

from serve.artifacts import jobs_with_artifacts, kept_samples_path, remove_artifacts, result_dir
from serve.db.repository import JobRepository
from serve.log import logger
from serve.settings import ServiceSettings

DAY_S = 86_400.0
FORECAST_ID = re.compile("[0-9a-f]{32}")


def apply_retention(jobs: JobRepository, settings: ServiceSettings) -> None:
    """Remove forecasts after `keep_days`, and the audit and their ids after `keep_audit_days`.

    The database comes first: files of an expired forecast that cannot be removed now are found
    again by its state. Erased rows are removed from the database's files as far as possible, and
    the end of the audit is logged, so that a copy of it lies outside of the database.
    """
    now = time.time()
    if settings.keep_days:
        before = now - DAY_S * settings.keep_days
        for job_id in jobs.expire(before):
            logger.info("forecast.expired", extra={"forecast": job_id})
        _remove_unknown_results(jobs, settings, before)
    if settings.keep_audit_days and (removed := jobs.prune(now - DAY_S * settings.keep_audit_days)):
        logger.info("audit.pruned", extra={"entries": removed})
    jobs.scrub()
    if (head := jobs.last_audit_entry()) is not None:
        logger.info("audit.head", extra={"sequence": head.sequence, "digest": head.digest})


def _remove_unknown_results(jobs: JobRepository, settings: ServiceSettings, before: float) -> None:
    """Remove results that the database does not know, if they were written before a time.

    An earlier database, or a backup that was restored, leaves them. Young ones are kept: the
    database may be the wrong one by mistake.
    """
    for job_id in filter(FORECAST_ID.fullmatch, jobs_with_artifacts(settings.artifacts)):
        paths = (
            result_dir(settings.artifacts, job_id),
            kept_samples_path(settings.artifacts, job_id),
        )
        written = [path.stat().st_mtime for path in paths if path.exists()]
        if written and max(written) < before and jobs.get(job_id) is None:
            remove_artifacts(settings.artifacts, job_id)
            logger.info("forecast.expired", extra={"forecast": job_id})
