"""The FastAPI application: forecasts under /v1, health and model under /v2.

The routes under /v2 follow the Open Inference Protocol.
"""

from fastapi import FastAPI
from fastapi.routing import APIRoute

from serve.api.dependencies import ServiceContext, retry_after_headers
from serve.api.methods import HeadMiddleware, install_method_handler
from serve.api.middleware import AuthMiddleware, BodySizeLimitMiddleware, NoStoreMiddleware
from serve.api.openapi import customize_openapi
from serve.api.problems import ProblemCounterMiddleware, install_problem_handlers
from serve.api.routes import (
    docs,
    events,
    forecasts,
    health,
    listing,
    models,
    page,
    results,
    segmentation,
    view,
)

ROUTERS = (
    page.router,
    health.router,
    models.router,
    forecasts.router,
    events.router,
    listing.router,
    results.router,
    segmentation.router,
    view.router,
)


def create_app(context: ServiceContext) -> FastAPI:
    """Create the application; only clients with one of `context.keys` may use it."""
    app = FastAPI(
        title="lesioncast",
        version="1",
        docs_url=None,
        redoc_url=None,
        # A redirect names scheme and host. Behind a proxy that ends TLS the scheme seems to be
        # http, and clients would send their key there in clear.
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.context = context
    settings = context.settings
    # Starlette calls the middleware that was added last first: forbid caching, answer HEAD,
    # count problems, authenticate, then limit the body.
    app.add_middleware(
        BodySizeLimitMiddleware, max_body=settings.max_body, max_form=settings.max_upload
    )
    app.add_middleware(AuthMiddleware, keys=context.keys)
    app.add_middleware(ProblemCounterMiddleware, count=context.observer.count_problem)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(NoStoreMiddleware)
    install_problem_handlers(app, retry_headers=retry_after_headers(settings))
    install_method_handler(app)
    for router in ROUTERS:
        app.include_router(router)
    if context.keys is None:  # a browser that opens a page sends no key
        app.include_router(docs.router)
    customize_openapi(app, keys=context.keys is not None)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
