"""Bodies of requests and responses, as pydantic models."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from lesioncast.forecasting.adaptive import SamplingRequest
from lesioncast.forecasting.view.schemas import Interval

INT64_MAX_EXCLUSIVE = 2**63  # every database column and every format string holds smaller integers

ForecastState = Literal[
    "accepted", "running", "succeeded", "failed", "cancelled", "deleted", "expired"
]


def _single_error(value: object, parse: ValidatorFunctionWrapHandler) -> object:
    """Parse a covariate with one error message; a union reports one for each of its types."""
    try:
        return parse(value)
    except ValidationError:
        message = "Input should be a word of at most 64 letters, a finite number or null"
        raise PydanticCustomError("covariate", message) from None


CovariateValue = Annotated[
    Annotated[str, Field(max_length=64)]
    | Annotated[int, Field(ge=-INT64_MAX_EXCLUSIVE, lt=INT64_MAX_EXCLUSIVE)]
    | float
    | None,
    WrapValidator(_single_error),
]


class SamplerOverrides(BaseModel):
    """Sampler settings that replace those of the bundle; null keeps the bundle's own value."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    num_steps: int | None = Field(
        default=None, ge=1, lt=INT64_MAX_EXCLUSIVE, description="Denoising steps of each sample."
    )
    eta: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of noise that is added at each step; only for sde-dpmsolver++.",
    )
    guidance: float | None = Field(
        default=None,
        ge=0,
        description="Guidance scale: 0 ignores the images, 1 is the conditional model.",
    )


class ForecastParameters(BaseModel):
    """Parameters of a forecast. The same seed names the same samples in every request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    arms: list[str] | None = Field(
        default=None, min_length=1, max_length=64, description="Treatment arms; all by default."
    )
    samples: int = Field(
        default=16,
        ge=2,
        lt=INT64_MAX_EXCLUSIVE,
        description="Samples of each arm; with `tolerance`, the maximum.",
    )
    tolerance: float | None = Field(
        default=None,
        gt=0,
        lt=0.5,
        description="Stop sampling once the active fraction is at most this far from either end of "
        "its 95 % interval, for every arm.",
    )
    seed: int = Field(
        default=0, ge=0, lt=INT64_MAX_EXCLUSIVE, description="Seed of the samples; arms share it."
    )
    sampler: SamplerOverrides = Field(default_factory=SamplerOverrides)
    reference_arm: str | None = Field(
        default=None,
        max_length=64,
        description="Arm that the others are compared with; the first of `arms` by default.",
    )
    sessions: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=2,
        description="Sessions whose images the model sees; all by default. With `w000` alone, the "
        "arms are compared from the images before treatment.",
    )


class ForecastRequest(ForecastParameters):
    """Request a forecast of a subject of the mounted store."""

    subject: str = Field(
        max_length=64, examples=["sub-0001"], description="Subject of the mounted store."
    )


class UploadForecastRequest(ForecastParameters):
    """Request a forecast of a patient whose images are in the same form."""

    subject: str = Field(
        default="sub-upload",
        pattern="^sub-[A-Za-z0-9]{1,58}$",
        description="Name of the patient in the results. Samples depend on it and on the seed, as "
        "for a subject of a store.",
    )
    covariates: dict[str, CovariateValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Covariates that the model takes; null, or leaving one out, means unknown.",
    )


class ResolvedRequest(BaseModel):
    """A request with every default made explicit, as the service stores it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str = Field(description="Name of the patient.")
    arms: tuple[str, ...] = Field(description="Treatment arms.")
    reference_arm: str = Field(description="Arm that the others are compared with.")
    sessions: tuple[str, ...] = Field(description="Sessions whose images the model sees.")
    samples: int = Field(description="Samples of each arm; with `tolerance`, the maximum.")
    tolerance: float | None = Field(
        default=None,
        description="Half-width of the 95 % interval of the active fraction at which sampling "
        "stops.",
    )
    seed: int = Field(description="Seed of the samples.")
    sampler: SamplerOverrides = Field(default_factory=SamplerOverrides)
    covariates: dict[str, CovariateValue] = Field(
        default_factory=dict, description="Covariates that came with an upload."
    )
    upload: str | None = Field(
        default=None, description="Digest of the uploaded images; null for a subject of the store."
    )

    @property
    def sampling_request(self) -> SamplingRequest:
        """Return the samples that the request asks for."""
        return SamplingRequest(
            subject=self.subject,
            arms=self.arms,
            seed=self.seed,
            samples=self.samples,
            tolerance=self.tolerance,
            sampler_overrides=self.sampler.model_dump(exclude_none=True),
        )


class Progress(BaseModel):
    """Number of samples drawn so far, over all arms."""

    done: int
    total: int


class PartialEstimate(BaseModel):
    """Estimates from the samples of one arm that are drawn so far."""

    samples: int
    active_fraction: Interval = Field(description="Share of samples with at least one lesion.")
    count_mean: float = Field(description="Mean number of lesions of a sample.")


class ForecastLinks(BaseModel):
    """Paths of the routes of a forecast."""

    self_link: str = Field(alias="self")
    events: str
    result: str
    derivative: str


class ForecastStatus(BaseModel):
    """State of a forecast, its progress and partial results."""

    id: str
    state: ForecastState
    request: ResolvedRequest | None = Field(
        description="The request with every default made explicit; null once the forecast was "
        "cancelled or deleted, because the request names the patient."
    )
    progress: Progress
    partial: dict[str, PartialEstimate] = Field(
        description="Estimates by arm while the forecast runs; empty once it has finished."
    )
    error: str | None = Field(description="Why the forecast failed; null otherwise.")
    links: ForecastLinks


class ServerLive(BaseModel):
    """Answer of the liveness probe."""

    live: bool


class ServerReady(BaseModel):
    """Answer of the readiness probe."""

    ready: bool


class ServerMetadata(BaseModel):
    """Server metadata of the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, data type and shape of an input or output."""

    name: str
    datatype: str
    shape: list[int]


class CovariateInfo(BaseModel):
    """A covariate that the model takes; unknown values are allowed."""

    name: str
    levels: list[str] = Field(description="Its values; empty for a number.")
    centre: float | None = Field(description="Mean of a number in training; null for levels.")


class ModelMetadata(BaseModel):
    """Model metadata of the Open Inference Protocol, with the arms and sessions of the bundle."""

    name: str
    versions: list[str] = Field(description="Digest of the mounted bundle.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    arms: list[str]
    sessions: list[list[str]] = Field(
        description="Combinations of sessions that a request may name; the first is the default."
    )
    visits: dict[str, str] = Field(
        description="What the trial of the bundle calls the sessions, by the names used here."
    )
    covariates: list[CovariateInfo] = Field(description="Covariates that an upload may state.")
    demo: bool = Field(description="Whether the service runs in demo mode, without keys.")


class ModelReady(BaseModel):
    """Readiness of the model in the Open Inference Protocol."""

    name: str
    ready: bool
