"""What a client may ask for, and what of it is drawn in one go."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from lesioncast.forecasting.runtime import format_choices
from lesioncast.imaging.channels import Sessions
from serve.api.problems import ApiProblemError
from serve.api.routes.models import ModelInfo
from serve.settings import ServiceSettings

INT64_MAX_EXCLUSIVE = (
    2**63
)  # an integer has less, which every database and every format string can hold


def _single_error(value: object, parse: ValidatorFunctionWrapHandler) -> object:
    """What is wrong with a covariate, once: a union says it for each of its kinds."""
    try:
        return parse(value)
    except ValidationError:
        wrong = "Input should be a word of at most 64 letters, a finite number or null"
        raise PydanticCustomError("covariate", wrong) from None


CovariateValue = Annotated[
    Annotated[str, Field(max_length=64)]
    | Annotated[int, Field(ge=-INT64_MAX_EXCLUSIVE, lt=INT64_MAX_EXCLUSIVE)]
    | float
    | None,
    WrapValidator(_single_error),
]


class SamplerOverrides(BaseModel):
    """How samples are drawn, where that is not to be as the bundle was shipped to.

    As in `SamplerConfig`: `eta` counts with the solver sde-dpmsolver++ alone.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    num_steps: int | None = Field(default=None, ge=1, lt=INT64_MAX_EXCLUSIVE)
    eta: float | None = Field(default=None, ge=0, le=1)
    guidance: float | None = Field(default=None, ge=0)


class ForecastParameters(BaseModel):
    """A forecast under some arms or all of them.

    The same seed names the same samples, whatever else is asked for; arms share them. With `error`
    sampling stops as soon as the 95 % interval of the share of samples with lesions reaches no
    further than that to either side, on average, under every arm; `samples` are the most then.
    `sessions` are those whose images are shown, all where none is named: w000 alone asks what each
    arm would have done from the start.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    arms: list[str] | None = Field(default=None, min_length=1, max_length=64)
    samples: int = Field(default=16, ge=2, lt=INT64_MAX_EXCLUSIVE)
    error: float | None = Field(default=None, gt=0, lt=0.5)
    seed: int = Field(default=0, ge=0, lt=INT64_MAX_EXCLUSIVE)
    sampler: SamplerOverrides = Field(default_factory=SamplerOverrides)
    reference_arm: str | None = Field(default=None, max_length=64)
    sessions: list[str] | None = Field(default=None, min_length=1, max_length=2)


class ForecastRequest(ForecastParameters):
    """A forecast of one subject of the mounted store."""

    subject: str = Field(max_length=64, examples=["sub-0001"])


class UploadForecastRequest(ForecastParameters):
    """A forecast of the patient whose images come with it.

    `subject` names the results, and the samples with the seed, as it would in a store;
    `covariates` are those that the bundle's model is told of: null, like those left out, says that
    one is not known.
    """

    subject: str = Field(default="sub-upload", pattern="^sub-[A-Za-z0-9]{1,58}$")
    covariates: dict[str, CovariateValue] = Field(default_factory=dict, max_length=64)


class PatientRef(NamedTuple):
    """Who is forecast: a subject of the mounted store, or of what was uploaded for a forecast; and
    the sessions whose images are shown, None for all."""

    subject: str
    upload: str | None  # the forecast's id
    sessions: Sessions | None = None


def check_subject(order: ForecastRequest, subjects: Sequence[str]) -> None:
    """Raises RequestError for a subject that the store does not hold."""
    if order.subject not in subjects:
        raise ApiProblemError(
            422, f"subject: expected a subject of the store, got {order.subject}.", field="subject"
        )


def resolve_request(
    wishes: ForecastParameters, *, model: ModelInfo, settings: ServiceSettings
) -> dict[str, Any]:
    """The wishes with every default made explicit, as they are recorded. Raises RequestError."""
    arms = model.arms
    wanted = list(arms) if wishes.arms is None else wishes.arms
    for number, arm in enumerate(wanted):
        if arm not in arms or arm in wanted[:number]:
            raise ApiProblemError(
                422,
                f"arms.{number}: expected each once of {', '.join(arms)}; got {arm}.",
                field=f"arms.{number}",
            )
    reference = wanted[0] if wishes.reference_arm is None else wishes.reference_arm
    if reference not in wanted:
        raise ApiProblemError(
            422,
            f"reference_arm: expected one of {', '.join(wanted)}, got {reference}.",
            field="reference_arm",
        )
    sessions = model.sessions[0] if wishes.sessions is None else tuple(wishes.sessions)
    if sessions not in model.sessions:
        detail = (
            f"sessions: expected {format_choices(model.sessions)}, got {', '.join(sessions)[:80]}."
        )
        raise ApiProblemError(422, detail, field="sessions")
    own = wishes.sampler
    _check_maximum("samples", wishes.samples, settings.max_samples)
    _check_maximum("sampler.num_steps", own.num_steps, settings.max_steps)
    _check_maximum("sampler.guidance", own.guidance, settings.max_guidance)
    if own.eta is not None and model.sampler.solver != "sde-dpmsolver++":
        detail = f"sampler.eta: expected none, for this bundle's solver is {model.sampler.solver}."
        raise ApiProblemError(422, detail, field="sampler.eta")
    explicit = {"arms": wanted, "reference_arm": reference, "sessions": list(sessions)}
    return wishes.model_dump() | explicit | {"sampler": own.model_dump(exclude_none=True)}


def _check_maximum(field: str, got: float | None, most: float) -> None:
    if got is not None and got > most:
        raise ApiProblemError(422, f"{field}: expected at most {most:g}, got {got:g}.", field=field)
