"""Routes of the web page: its own files, which hold no data and need no key."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from serve.api.paths import PAGE_PREFIX
from serve.api.problems import ApiProblemError

MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# NiiVue as nilearn ships it. The path is private to nilearn, so the content is checked.
NIIVUE = "niivue.js"
NIIVUE_SHA256 = "c40dc2679c337c906deef22e157ee02c17459db9b8ecc51aa773af27791a567c"
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """Return the entity tag: a change of the content changes it."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


@cache
def page_files() -> Mapping[str, PageFile]:
    """Return the files of `serve/page` by name, and NiiVue if it is the version that was tested."""
    found = {
        entry.name: PageFile(entry.read_bytes(), MEDIA_TYPES[f".{entry.name.rpartition('.')[2]}"])
        for entry in files("serve").joinpath("page").iterdir()
        if f".{entry.name.rpartition('.')[2]}" in MEDIA_TYPES
    }
    niivue = _read_niivue()
    if niivue is not None:
        found[NIIVUE] = PageFile(niivue, MEDIA_TYPES[".js"])
    return found


def _read_niivue() -> bytes | None:
    """Return NiiVue from nilearn's wheel, None if it is missing or another version."""
    try:
        content = files("nilearn").joinpath("_assets", "js", "niivue.umd.js").read_bytes()
    except (ModuleNotFoundError, OSError):
        return None
    return content if hashlib.sha256(content).hexdigest() == NIIVUE_SHA256 else None


@router.get("/")
def get_page(request: Request) -> Response:
    """Return the page."""
    return _answer(request, "index.html")


@router.get(PAGE_PREFIX + "{name}")
def get_page_file(request: Request, name: str) -> Response:
    """Return a script or style of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = page_files().get(name)
    if file is None:
        raise ApiProblemError(404, "The page has no such file.")
    headers = {**SECURITY_HEADERS, "ETag": file.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
