"""Who may enter: clients with a key that may do what they ask, and bodies of bounded size.

python -m serve.api.middleware hospital-a >> keys.txt    # prints the key once, on standard error
"""

import argparse
import ipaddress
import sys
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.problems import ApiProblemError
from serve.keys import FORECAST, READ, SCOPES, ApiKeyFile, generate_key

HEALTH_PREFIX = "/v2/health/"
MULTIPART_FORM = "multipart/form-data"
DEMO_OWNER = "demo"
LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}


def media_type(headers: Headers) -> str:
    """The kind of a body, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class AuthMiddleware:
    """ASGI middleware: knows who asks (`owner` and the id of their `key`, in the scope's state)
    before anything else runs.

    Without `keys`, in demo mode, only this machine may ask, and only under its own name: a page
    that a browser here has open elsewhere must not reach the service by DNS rebinding. A body has
    at most `max_body` bytes, a form `max_form`.
    """

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeyFile | None, max_body: int, max_form: int
    ) -> None:
        self._app, self._keys = app, keys
        self._max_body, self._max_form = max_body, max_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http" or scope["path"].startswith(HEALTH_PREFIX):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            owner, key = self._authenticate(scope, headers)
            scope.setdefault("state", {}).update(owner=owner, key=key)
            most = self._max_form if media_type(headers) == MULTIPART_FORM else self._max_body
            _check_content_length(int(headers.get("content-length", 0)), most)
        except ApiProblemError as refused:
            await refused.response()(scope, receive, send)
            return
        await self._app(scope, _limit_body(receive, most), send)

    def _authenticate(self, scope: Scope, headers: Headers) -> tuple[str, str]:
        if self._keys is None:
            client, host = (scope.get("client") or ("",))[0], headers.get("host", "")
            # A page of another site may send forms here, but not without saying where it is from.
            origin = headers.get("origin", host).rpartition("/")[2]
            if _is_loopback(client) and {_strip_port(host), _strip_port(origin)} <= LOCAL_HOSTS:
                return DEMO_OWNER, DEMO_OWNER
            raise ApiProblemError(
                403, "Demo mode answers this machine alone; start it with keys=FILE."
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        known = self._keys.find(key) if scheme.lower() == "bearer" else None
        if known is None:
            raise ApiProblemError(
                401,
                "Expected a known API key, of today, in the header Authorization: Bearer KEY.",
                field="Authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )
        wanted = READ if scope["method"] in ("GET", "HEAD") else FORECAST
        if wanted not in known.scopes:
            detail = f"Expected a key that may {wanted}, got {known.id}, which may not."
            raise ApiProblemError(403, detail, field="Authorization")
        return known.name, known.id


def _check_content_length(size: int, most: int) -> None:
    if size > most:
        raise ApiProblemError(413, f"Expected a body of at most {most} bytes, got {size}.")


def _limit_body(receive: Receive, most: int) -> Receive:
    """A body without a length that it states, or of another, ends there too."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, f"Expected a body of at most {most} bytes.")
        return message

    return counted


def _strip_port(host: str) -> str:
    return host.rsplit(":", 1)[0]


def _is_loopback(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


def main(argv: Sequence[str]) -> int:
    """Make a key for the client named; prints the line to keep, and the key on standard error."""
    parser = argparse.ArgumentParser(description="Make an API key of the forecast service.")
    parser.add_argument("name", help="the client's, without spaces, such as hospital-a")
    parser.add_argument("--scopes", default=",".join(SCOPES), help="what it may do")
    parser.add_argument("--days", type=int, default=365, help="how long it may")
    given = parser.parse_args(argv)
    if not given.name.isprintable() or len(given.name.split()) != 1:
        parser.error("expected a name without spaces")
    if unknown := set(given.scopes.split(",")) - set(SCOPES):
        parser.error(f"expected scopes of {','.join(SCOPES)}, got {','.join(sorted(unknown))}")
    key, kept = generate_key(given.name, scopes=tuple(given.scopes.split(",")), days=given.days)
    sys.stderr.write(f"key {kept.id} of {kept.name}, shown once: {key}\n")
    sys.stdout.write(f"{kept.line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
