"""Who may enter: API keys, kept as hashes, and bodies of bounded size.

    python -m serve.doors hospital-a >> keys.txt    # prints the key once, on standard error

A line of the file is a name and the sha256 of a key. Keys are 256 random bits, so a fast hash is
enough. Two lines of one name are one client with two keys: that is how a key is rotated.
"""

import hashlib
import hmac
import ipaddress
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.problems import RequestError

HEALTH = "/v2/health/"
FORM = "multipart/form-data"
DEMO = "demo"
LOCAL = {"localhost", "127.0.0.1", "[::1]"}
Keys = tuple[tuple[str, str], ...]


def read_keys(path: Path) -> Keys:
    """Pairs of a client's name and the sha256 of its key. Raises ValueError, naming the line."""
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    for number, words in enumerate(lines, 1):
        if len(words) != 2 or len(words[1]) != 64:
            raise ValueError(f"{path}, key {number}: expected a name and a sha256; use serve.doors")
    return tuple((name, digest) for name, digest in lines)


def media_type(headers: Headers) -> str:
    """The kind of a body, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def digest_of(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Doors:
    """ASGI middleware: knows who asks (`scope["state"]["owner"]`) before anything else runs.

    Without `keys`, in demo mode, only this machine may ask, and only under its own name: a page
    that a browser here has open elsewhere must not reach the service by DNS rebinding. A body has
    at most `max_body` bytes, a form `max_form`.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys | None, max_body: int, max_form: int) -> None:
        self._app, self._keys = app, keys
        self._max_body, self._max_form = max_body, max_form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http" or scope["path"].startswith(HEALTH):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            scope.setdefault("state", {})["owner"] = self._owner(scope, headers)
            most = self._max_form if media_type(headers) == FORM else self._max_body
            _bound(int(headers.get("content-length", 0)), most)
        except RequestError as refused:
            await refused.response()(scope, receive, send)
            return
        await self._app(scope, _counted(receive, most), send)

    def _owner(self, scope: Scope, headers: Headers) -> str:
        if self._keys is None:
            client, host = (scope.get("client") or ("",))[0], headers.get("host", "")
            # A page of another site may send forms here, but not without saying where it is from.
            origin = headers.get("origin", host).rpartition("/")[2]
            if _is_loopback(client) and {_name(host), _name(origin)} <= LOCAL:
                return DEMO
            raise RequestError(
                403, "Demo mode answers this machine alone; start it with keys=FILE."
            )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = digest_of(key)
        known = [name for name, kept in self._keys if hmac.compare_digest(kept, digest)]
        if scheme.lower() != "bearer" or not known:
            raise RequestError(
                401,
                "Expected a known API key in the header Authorization: Bearer KEY.",
                field="Authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return known[0]


def _bound(size: int, most: int) -> None:
    if size > most:
        raise RequestError(413, f"Expected a body of at most {most} bytes, got {size}.")


def _counted(receive: Receive, most: int) -> Receive:
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


def _name(host: str) -> str:
    return host.rsplit(":", 1)[0]


def _is_loopback(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False


def main(argv: Sequence[str]) -> int:
    """Make a key for the client named; prints the line to keep, and the key on standard error."""
    if len(argv) != 1 or not argv[0].isprintable() or " " in argv[0]:
        sys.stderr.write("expected one name without spaces, such as hospital-a\n")
        return 2
    key = secrets.token_urlsafe(32)
    sys.stderr.write(f"key of {argv[0]}, shown once: {key}\n")
    sys.stdout.write(f"{argv[0]} {digest_of(key)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
