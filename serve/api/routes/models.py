"""The bundle as a model of the Open Inference Protocol; forecasts are requested under /v1."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from lesioncast.imaging.channels import SESSIONS
from lesioncast.imaging.covariates import Covariate
from serve.api.dependencies import Context
from serve.api.problems import ApiProblemError, problem_responses
from serve.api.schemas import (
    CovariateInfo,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    TensorMetadata,
)
from serve.model_info import MODEL_NAME, ModelInfo
from storage.layout import OUTCOME
from storage.version import installed_version

router = APIRouter(prefix="/v2", tags=["models"])
ModelName = Annotated[str, Path(description=f"Name of the model: {MODEL_NAME}.")]


@router.get("")
async def server_metadata() -> ServerMetadata:
    """Return the server's name and version."""
    return ServerMetadata(name=MODEL_NAME, version=installed_version(), extensions=[])


@router.get("/models/{name}", responses=problem_responses(404))
async def model_metadata(name: ModelName, context: Context) -> ModelMetadata:
    """Return inputs, outputs, arms and sessions of the mounted bundle."""
    _check_model_name(name)
    return describe_model(context.model, demo=context.keys is None)


@router.get(
    "/models/{name}/ready",
    responses={
        **problem_responses(404),
        503: {"model": ModelReady, "description": "Nothing can draw."},
    },
)
async def model_ready(name: ModelName, context: Context, response: Response) -> ModelReady:
    """Answer 200 if the forecast worker and a sampler are ready, 503 otherwise."""
    _check_model_name(name)
    ready = await context.ready()
    response.status_code = 200 if ready else 503
    return ModelReady(name=MODEL_NAME, ready=ready)


def _check_model_name(name: str) -> None:
    if name != MODEL_NAME:
        raise ApiProblemError(404, f"name: expected {MODEL_NAME}, got another model.", field="name")


def describe_model(model: ModelInfo, *, demo: bool) -> ModelMetadata:
    """Describe a bundle as model metadata of the Open Inference Protocol."""
    slab = list(model.slab)
    inputs = [_tensor(name, "FP32", slab) for name in model.condition]
    inputs += [_tensor(covariate.name, "FP32", [1]) for covariate in model.covariates]
    inputs += [_tensor("arm", "BYTES", [1]), _tensor("seed", "UINT64", [1])]
    return ModelMetadata(
        name=MODEL_NAME,
        versions=[model.digest],
        platform="lesioncast_pytorch",
        inputs=inputs,
        outputs=[_tensor(f"{OUTCOME}/net2", "BOOL", slab)],
        arms=list(model.arms),
        sessions=[list(sessions) for sessions in model.sessions],
        visits={session: model.visits.describe(session) for session in SESSIONS},
        covariates=[_covariate(covariate) for covariate in model.covariates],
        demo=demo,
    )


def _covariate(covariate: Covariate) -> CovariateInfo:
    levels = list(covariate.levels)
    return CovariateInfo(
        name=covariate.name, levels=levels, centre=None if levels else covariate.centre
    )


def _tensor(name: str, datatype: str, shape: list[int]) -> TensorMetadata:
    return TensorMetadata(name=name, datatype=datatype, shape=shape)
