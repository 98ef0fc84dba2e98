"""Parse and check requests for forecasts."""

from collections.abc import Container, Mapping
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from lesioncast.bundle.compatibility import format_choices
from serve.api.problems import ApiProblemError
from serve.api.schemas import ForecastParameters, ResolvedRequest
from serve.model_info import ModelInfo
from serve.settings import ServiceSettings

REQUEST_FIELD = "request"
"""The field of a form that holds the request as JSON; the other fields are images."""
RENAMED_FIELDS: Mapping[str, str] = {"error": "tolerance", "order": REQUEST_FIELD}
"""Fields of earlier versions, and the fields that replace them."""

RequestT = TypeVar("RequestT", bound=ForecastParameters)


def parse_request(model: type[RequestT], body: str | bytes) -> RequestT:
    """Parse JSON as a request. Raises RequestValidationError that names each wrong field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors: list[dict[str, Any]] = [
            {**each, "loc": ("body", *each["loc"])} for each in error.errors()
        ]
        for each in errors:
            new_name = RENAMED_FIELDS.get(str(each["loc"][-1]))
            if each["type"] == "extra_forbidden" and new_name is not None:
                each["msg"] = f"This field is now called {new_name}"
        raise RequestValidationError(errors) from error


def check_subject(subject: str, subjects: Container[str]) -> None:
    """Raise ApiProblemError if the store does not hold a subject."""
    if subject not in subjects:
        raise ApiProblemError(
            422, f"subject: expected a subject of the store, got {subject}.", field="subject"
        )


def resolve_request(
    parameters: ForecastParameters, *, model: ModelInfo, settings: ServiceSettings
) -> ResolvedRequest:
    """Make every default of a request explicit.

    Raises ApiProblemError, naming the field, for a value that the bundle or the settings exclude.
    """
    arms = list(model.arms) if parameters.arms is None else parameters.arms
    for index, arm in enumerate(arms):
        if arm not in model.arms or arm in arms[:index]:
            raise ApiProblemError(
                422,
                f"arms.{index}: expected each once of {', '.join(model.arms)}; got {arm}.",
                field=f"arms.{index}",
            )
    reference = arms[0] if parameters.reference_arm is None else parameters.reference_arm
    if reference not in arms:
        raise ApiProblemError(
            422,
            f"reference_arm: expected one of {', '.join(arms)}, got {reference}.",
            field="reference_arm",
        )
    sessions = model.sessions[0] if parameters.sessions is None else tuple(parameters.sessions)
    if sessions not in model.sessions:
        detail = (
            f"sessions: expected {format_choices(model.sessions)}, got {', '.join(sessions)[:80]}."
        )
        raise ApiProblemError(422, detail, field="sessions")
    sampler = parameters.sampler
    _check_maximum("samples", parameters.samples, settings.max_samples)
    _check_maximum("sampler.num_steps", sampler.num_steps, settings.max_steps)
    _check_maximum("sampler.guidance", sampler.guidance, settings.max_guidance)
    if sampler.eta is not None and model.sampler.solver != "sde-dpmsolver++":
        detail = f"sampler.eta: expected none, for this bundle's solver is {model.sampler.solver}."
        raise ApiProblemError(422, detail, field="sampler.eta")
    explicit: dict[str, Any] = {"arms": arms, "reference_arm": reference, "sessions": sessions}
    return ResolvedRequest(**(parameters.model_dump() | explicit))


def _check_maximum(field: str, value: float | None, maximum: float) -> None:
    if value is not None and value > maximum:
        raise ApiProblemError(
            422, f"{field}: expected at most {maximum:g}, got {value:g}.", field=field
        )
