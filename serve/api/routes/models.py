"""The bundle as a model of the Open Inference Protocol: /v2 and /v2/models."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.forecasting.runtime import supported_sessions
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.covariates import Covariate
from serve.api.problems import ApiProblemError
from storage.version import installed_version

MODEL_NAME = "lesioncast"


@dataclass(frozen=True)
class ModelInfo:
    """What clients may know of a bundle, without its weights.

    `condition` names the channels, `covariates` are the numbers and words that its model is told;
    `sessions` are the choices of those whose images it may be shown.
    """

    digest: str
    arms: tuple[str, ...]
    slab: tuple[int, int, int]
    condition: tuple[str, ...]
    covariates: tuple[Covariate, ...]
    sampler: SamplerConfig
    sessions: tuple[Sessions, ...]


def model_info(bundle: Bundle) -> ModelInfo:
    """Of a bundle that is loaded."""
    config = bundle.config
    return ModelInfo(
        digest=bundle.digest,
        arms=config.model.arms,
        slab=config.slab,
        condition=config.model.control.condition,
        covariates=config.model.covariates,
        sampler=config.sampler,
        sessions=supported_sessions(bundle),
    )


def add_models(api: FastAPI, model: ModelInfo, ready: Callable[[], Awaitable[bool]]) -> None:
    """The protocol's metadata; forecasts themselves are asked for under /v1."""

    @api.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": MODEL_NAME, "version": installed_version(), "extensions": []}

    @api.get("/v2/models/{name}")
    async def metadata(name: str) -> dict[str, Any]:
        _check_model_name(name)
        return _metadata(model)

    @api.get("/v2/models/{name}/ready")
    async def model_ready(name: str) -> JSONResponse:
        _check_model_name(name)
        able = await ready()
        return JSONResponse({"name": MODEL_NAME, "ready": able}, status_code=200 if able else 503)


def _check_model_name(name: str) -> None:
    if name != MODEL_NAME:
        raise ApiProblemError(404, f"name: expected {MODEL_NAME}, got another model.", field="name")


def _metadata(model: ModelInfo) -> dict[str, Any]:
    slab = list(model.slab)
    inputs = [_tensor(name, "FP32", slab) for name in model.condition]
    inputs += [_tensor(each.name, "FP32", [1]) for each in model.covariates]
    inputs += [_tensor("arm", "BYTES", [1]), _tensor("seed", "UINT64", [1])]
    return {
        "name": MODEL_NAME,
        "versions": [model.digest],
        "platform": "lesioncast_pytorch",
        "inputs": inputs,
        "outputs": [_tensor("w096/net2", "BOOL", slab)],
        "arms": list(model.arms),
        "sessions": [list(each) for each in model.sessions],
    }


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}
