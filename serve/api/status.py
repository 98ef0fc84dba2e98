"""The status document of a forecast: state, progress and partial results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.forecasting.ensemble import active_fraction, wilson_interval
from lesioncast.forecasting.view.schemas import Interval
from lesioncast.imaging.lesions import LesionCounts
from serve.api.paths import forecast_link
from serve.api.schemas import (
    ForecastLinks,
    ForecastStatus,
    PartialEstimate,
    Progress,
)
from serve.db.models import UNFINISHED, ForecastJob
from serve.db.repository import JobRepository


@dataclass(frozen=True)
class StatusReader:
    """Status documents from the database."""

    jobs: JobRepository
    #: Digest of the mounted bundle; samples of another one do not count.
    bundle: str
    #: Whether lesions are counted after the opening.
    opening: bool

    def read(self, job: ForecastJob, root: str) -> ForecastStatus:
        """Return how far a forecast is and what its samples show; links begin with `root`.

        Samples are read before the state, because they are deleted when the forecast finishes. In
        the other order, a running forecast could seem to have fewer samples than before.
        """
        lesions = self.jobs.lesion_counts(job.id, self.bundle)
        job = self.jobs.get(job.id) or job
        if job.state not in UNFINISHED:
            lesions = {}
        drawn = sum(map(len, lesions.values()))
        done = job.total if job.state == "succeeded" else drawn
        return ForecastStatus(
            id=job.id,
            state=job.state,
            request=job.stored_request,
            progress=Progress(done=done, total=job.total),
            partial={
                arm: partial_estimate(lesions[arm], opening=self.opening)
                for arm in (job.request.arms if lesions else ())
                if arm in lesions
            },
            error=job.error,
            links=forecast_links(root, job.id),
        )


def forecast_links(root: str, forecast_id: str) -> ForecastLinks:
    """Return the paths of a forecast's routes under the prefix `root`."""
    path = forecast_link(root, forecast_id)
    return ForecastLinks(
        self=path,
        events=f"{path}/events",
        result=f"{path}/result",
        derivative=f"{path}/derivative",
    )


def partial_estimate(lesions: Sequence[LesionCounts], *, opening: bool) -> PartialEstimate:
    """Estimate active fraction and lesion count from the samples of one arm."""
    counts = np.array([sample.opened if opening else sample.plain for sample in lesions])
    share = active_fraction(counts)
    low, high = wilson_interval(share, len(counts))
    return PartialEstimate(
        samples=len(counts),
        active_fraction=Interval(value=share, low=low, high=high),
        count_mean=float(counts.mean()),
    )
