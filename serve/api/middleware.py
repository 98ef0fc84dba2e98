"""ASGI middleware: authentication by API key, and a limit on the size of request bodies."""

import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.paths import HEALTH_PREFIX, PAGE_PREFIX, root_path, route_path
from serve.api.problems import ApiProblemError
from serve.keys import FORECAST, READ, ApiKeyFile

MULTIPART_FORM = "multipart/form-data"
READING_METHODS = ("GET", "HEAD", "OPTIONS")
DEMO_OWNER = "demo"
POLICY_VIOLATION = 1008  # RFC 6455; before the handshake, servers answer it as 403
LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}
FORWARDING_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


def media_type(headers: Headers) -> str:
    """Return the media type of a body, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class AuthMiddleware:
    """ASGI middleware that authenticates every request except health probes.

    Everything else that can come from a client, such as a WebSocket, is refused: no route needs it,
    and a route that is added later must not be open.

    It sets `owner`, the client's name, and `key`, the id of its API key, in the request's state.
    Without `keys`, in demo mode, only requests from this machine to its own host names are
    answered. The host is checked because a web page that is open in a browser here could reach the
    service by DNS rebinding.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeyFile | None) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or pass the request on."""
        if scope["type"] == "lifespan":  # the server's own, without a client
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await receive()  # the client's request to connect
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        # The router must see the same path as this check: Starlette splits it otherwise if the
        # prefix ends in a slash.
        scope["root_path"] = root_path(scope)
        if not route_path(scope).startswith(HEALTH_PREFIX):
            try:
                owner, key_id = self._authenticate(scope)
            except ApiProblemError as problem:
                await problem.response()(scope, receive, send)
                return
            scope.setdefault("state", {}).update(owner=owner, key=key_id)
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> tuple[str, str]:
        """Return the client's name and the id of its key. Raises ApiProblemError."""
        headers = Headers(scope=scope)
        if self._keys is None:
            _require_this_machine(scope, headers)
            return DEMO_OWNER, DEMO_OWNER
        if _is_page(scope):
            # The page's own files hold no data; the page sends the key with every other request.
            return "", ""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        key = self._keys.find(secret) if scheme.lower() == "bearer" else None
        if key is None:
            raise ApiProblemError(
                401,
                "Expected a known API key, of today, in the header Authorization: Bearer KEY.",
                field="Authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope_needed = READ if scope["method"] in READING_METHODS else FORECAST
        if scope_needed not in key.scopes:
            detail = f"Expected a key that may {scope_needed}, got {key.id}, which may not."
            raise ApiProblemError(403, detail, field="Authorization")
        return key.name, key.id


def _is_page(scope: Scope) -> bool:
    path = route_path(scope)
    return scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith(PAGE_PREFIX))


def _require_this_machine(scope: Scope, headers: Headers) -> None:
    client, host = (scope.get("client") or ("",))[0], headers.get("host", "")
    # A page of another site may post forms to this machine, but its browser states the origin.
    origin = headers.get("origin", host).rpartition("/")[2]
    # Behind a proxy every client looks local, or as local as it says.
    forwarded = any(name in headers for name in FORWARDING_HEADERS)
    local = {_strip_port(host), _strip_port(origin)} <= LOCAL_HOSTS
    if forwarded or not (_is_loopback(client) and local):
        raise ApiProblemError(403, "Demo mode answers this machine alone; start it with keys=FILE.")


def _strip_port(host: str) -> str:
    return host.rsplit(":", 1)[0]


def _is_loopback(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


class NoStoreMiddleware:
    """ASGI middleware that forbids caches to keep answers: they are about patients, and change."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the header Cache-Control to its answer."""

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_header)


class BodySizeLimitMiddleware:
    """ASGI middleware that answers 413 to a body above its limit.

    A form may have `max_form` bytes with all its files, any other body `max_body` bytes.
    """

    def __init__(self, app: ASGIApp, *, max_body: int, max_form: int) -> None:
        self._app, self._max_body, self._max_form = app, max_body, max_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 by the stated length, or count the bytes while the body is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self._max_form if media_type(headers) == MULTIPART_FORM else self._max_body
        stated = int(headers.get("content-length", 0))
        if stated > limit:
            detail = f"Expected a body of at most {limit} bytes, got {stated}."
            await ApiProblemError(413, detail).response()(scope, receive, send)
            return
        await self._app(scope, _limit_body(receive, limit), send)


def _limit_body(receive: Receive, limit: int) -> Receive:
    """Enforce the limit while reading, for bodies with a missing or wrong Content-Length."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, f"Expected a body of at most {limit} bytes.")
        return message

    return receive_limited
