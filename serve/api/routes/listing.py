"""Routes that list a client's forecasts and the subjects of the mounted store, page by page."""

import base64
import binascii
from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from serve.api.dependencies import Context, CurrentCaller
from serve.api.paths import FORECASTS, Root
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.schemas import ForecastLinks, ForecastState
from serve.api.status import forecast_links
from serve.db.listing import JobQuery, ListedJob, Place, list_jobs
from storage.store.case_table import Split

MAX_PAGE = 200

router = APIRouter(tags=["lists"])
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Largest number of entries.")]
Cursor = Annotated[
    str | None,
    Query(max_length=400, description="`next_cursor` of the page before; none for the first."),
]
PlaceT = TypeVar("PlaceT")


class ListedForecast(BaseModel):
    """A forecast in a list; the link `self` leads to its whole status."""

    id: str
    state: ForecastState
    subject: str | None = Field(description="Name of the patient; null once it is erased.")
    created: datetime = Field(description="When the forecast was accepted.")
    finished: datetime | None = Field(description="When it reached its final state.")
    links: ForecastLinks


class ForecastList(BaseModel):
    """A page of forecasts, the newest first."""

    forecasts: list[ListedForecast]
    next_cursor: str | None = Field(description="The next page's `cursor`; null on the last page.")


class ListedSubject(BaseModel):
    """A subject of the mounted store."""

    subject: str
    arm: str | None = Field(description="Arm received; null if unknown.")
    split: Split = Field(
        description="Whether the networks were trained on the subject: `train` and `val` were "
        "used, `test` and `unlabelled` were not."
    )


class SubjectList(BaseModel):
    """A page of subjects, sorted by name."""

    subjects: list[ListedSubject]
    total: int = Field(description="Number of subjects on all pages.")
    next_cursor: str | None = Field(description="The next page's `cursor`; null on the last page.")


@router.get(FORECASTS, responses=problem_responses(422))
def list_forecasts(
    context: Context,
    caller: CurrentCaller,
    root: Root,
    state: Annotated[
        list[ForecastState] | None, Query(max_length=20, description="Only these states.")
    ] = None,
    subject: Annotated[
        str | None, Query(max_length=64, description="Only forecasts of this subject.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ForecastList:
    """List the caller's own forecasts, the newest first."""
    query = JobQuery(
        owner=caller.owner,
        states=tuple(state or ()),
        subject=subject,
        after=_decode(_PLACE, cursor),
        limit=limit + 1,
    )
    found = [] if subject is not None and "\0" in subject else list_jobs(context.jobs, query)
    page = found[:limit]
    last = page[-1].place if len(found) > limit else None
    return ForecastList(
        forecasts=[_describe(job, root) for job in page],
        next_cursor=None if last is None else _encode(_PLACE, last),
    )


@router.get("/v1/subjects", responses=problem_responses(422))
def list_subjects(
    context: Context,
    search: Annotated[
        str, Query(max_length=64, description="Only names that contain this, in any case.")
    ] = "",
    limit: Limit = 50,
    cursor: Cursor = None,
) -> SubjectList:
    """List the subjects of the mounted store, which are the same for every client."""
    wanted = search.casefold()
    found = [case for case in context.subjects.values() if wanted in case.subject.casefold()]
    after = _decode(_NAME, cursor)
    later = [case for case in found if after is None or case.subject > after]
    page = later[:limit]
    return SubjectList(
        subjects=[
            ListedSubject(subject=case.subject, arm=case.arm, split=case.split) for case in page
        ],
        total=len(found),
        next_cursor=_encode(_NAME, page[-1].subject) if len(later) > limit else None,
    )


def _describe(job: ListedJob, root: str) -> ListedForecast:
    return ListedForecast(
        id=job.id,
        state=job.state,
        subject=job.subject,
        created=datetime.fromtimestamp(job.created, UTC),
        finished=None if job.finished is None else datetime.fromtimestamp(job.finished, UTC),
        links=forecast_links(root, job.id),
    )


_PLACE: TypeAdapter[Place] = TypeAdapter(Place)
_NAME: TypeAdapter[str] = TypeAdapter(str)


def _encode(adapter: TypeAdapter[PlaceT], place: PlaceT) -> str:
    """Return a place in a list as a cursor, which means nothing to clients."""
    return base64.urlsafe_b64encode(adapter.dump_json(place)).decode().rstrip("=")


def _decode(adapter: TypeAdapter[PlaceT], cursor: str | None) -> PlaceT | None:
    """Return the place of a cursor. Raises ApiProblemError for anything else."""
    if cursor is None:
        return None
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        return adapter.validate_json(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, ValidationError):
        detail = "cursor: expected next_cursor of the page before, got something else."
        raise ApiProblemError(422, detail, field="cursor") from None
