"""Route of the API's description for people, in demo mode.

It is written from the OpenAPI document as plain HTML, without scripts and without anything from
another server, so that it works offline and under the page's strict security policy.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, FileSystemLoader

from serve.api.paths import PAGE_PREFIX, Root
from serve.api.routes.page import SECURITY_HEADERS

DOCS = "/docs"
TEMPLATES = Path(__file__).parents[1] / "templates"

# Descriptions that are missing stay empty.
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters["pretty"] = lambda value: json.dumps(value, indent=2)

router = APIRouter(include_in_schema=False)


class Operation(NamedTuple):
    """One method of one path, as OpenAPI describes it."""

    method: str
    path: str
    details: Mapping[str, Any]


@router.get(DOCS)
def get_docs(request: Request, root: Root) -> Response:
    """Return the description of the API as a web page."""
    document = request.app.openapi()
    operations = [
        Operation(method.upper(), path, details)
        for path, methods in document["paths"].items()
        for method, details in methods.items()
    ]
    page = _ENVIRONMENT.get_template("docs.html").render(
        root=root,
        style=f"{root}{PAGE_PREFIX}docs.css",
        operations=operations,
        schemas=document["components"]["schemas"],
    )
    return Response(page, media_type="text/html", headers=dict(SECURITY_HEADERS))
