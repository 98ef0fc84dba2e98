"""The HTTP interface: forecasts under /v1, health and model under /v2 as in the Open Inference
Protocol."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from serve.api.dependencies import ServiceContext
from serve.api.middleware import AuthMiddleware
from serve.api.openapi import customize_openapi
from serve.api.problems import ProblemCounterMiddleware, install_problem_handlers
from serve.api.routes.asking import add_asking
from serve.api.routes.following import add_following
from serve.api.routes.models import add_models
from serve.api.routes.results import add_results
from serve.api.routes.segmentation import add_segmentation


def create_app(desk: ServiceContext) -> FastAPI:
    """The application, open to whom `desk.keys` names."""
    api = FastAPI(title="lesioncast", version="1", docs_url=None, redoc_url=None)
    settings = desk.settings
    api.add_middleware(
        AuthMiddleware, keys=desk.keys, max_body=settings.max_body, max_form=settings.max_upload
    )
    api.add_middleware(ProblemCounterMiddleware, told=desk.watch.count_problem)
    install_problem_handlers(api)
    _add_health(api, desk)
    add_models(api, desk.model, desk.ready)
    add_asking(api, desk)
    add_following(api, desk)
    add_results(api, desk)
    add_segmentation(api, desk)
    customize_openapi(api, keys=desk.keys is not None)
    return api


def _add_health(api: FastAPI, desk: ServiceContext) -> None:
    @api.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        able = await desk.ready()
        return JSONResponse({"ready": able}, status_code=200 if able else 503)
