"""API keys, stored as hashes in a file that is read again whenever it changes.

    python -m serve.keys create hospital-a >> keys.txt    # the key itself goes to standard error

A line of the file holds a client's name, the sha256 of a key, the key's scopes and the last day on
which the key is valid. Keys are 256 random bits, so that a fast hash is enough. The first eight
digits of the hash are the key's id. Several lines with one name are one client with several keys:
to rotate a key, add a line, and remove the old line later.
"""

import argparse
import hmac
import re
import secrets
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from serve.log import logger
from storage.digest import sha256_bytes
from storage.text_files import composed, read_text

READ, FORECAST = "read", "forecast"
SCOPES = (READ, FORECAST)
_TIME_STAMP_STEP_S = 2.1  # a little more than the coarsest step of any file system's times
CREATE_COMMAND = "python -m serve.keys create NAME"


class ApiKey(NamedTuple):
    """One key of a client, without the key itself."""

    name: str
    digest: str
    scopes: tuple[str, ...]
    until: date

    @property
    def id(self) -> str:
        """Return a short public identifier for logs and the audit; it does not reveal the key."""
        return self.digest[:8]

    @property
    def line(self) -> str:
        """Return the key's line of the key file."""
        return f"{self.name} {self.digest} {','.join(self.scopes)} {self.until.isoformat()}"


def hash_key(key: str) -> str:
    """Return the hash of a key as hexadecimal digits."""
    return sha256_bytes(key.encode())


def generate_key(name: str, *, scopes: tuple[str, ...], days: int) -> tuple[str, ApiKey]:
    """Generate a random key for a client. Returns the secret and the entry of the key file."""
    key = secrets.token_urlsafe(32)
    until = datetime.now(UTC).date() + timedelta(days=days)
    return key, ApiKey(name, hash_key(key), scopes, until)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read all keys of a file, including expired ones.

    Raises ValueError that names the line, or the file if it is not UTF-8 text.
    """
    lines = read_text(path).splitlines()
    return tuple(_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip())


def _parse(path: Path, number: int, line: str) -> ApiKey:
    fields = line.split()
    try:
        name, digest, scopes, until = fields
        # A client is the same whether its name has composed or decomposed accents.
        key = ApiKey(composed(name), digest, tuple(scopes.split(",")), date.fromisoformat(until))
        if (
            not re.fullmatch("[0-9a-f]{64}", digest)
            or not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", until)
            or not set(key.scopes) <= set(SCOPES)
        ):
            raise ValueError(line)
    except ValueError as error:
        # The line itself is not repeated: it may hold a key that was pasted by mistake.
        raise ValueError(
            f"{path}, line {number}: expected a name, a sha256, some of {','.join(SCOPES)} and a "
            f"day such as 2030-01-31, got {len(fields)} fields; make the line with {CREATE_COMMAND}"
        ) from error
    return key


class ApiKeyFile:
    """The currently valid keys.

    The file is read again when it changes. If reading fails, the previous keys stay valid and each
    request tries again; an empty file revokes all keys. Raises ValueError if the file holds no key
    at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._signature = path, _settled_signature(path)
        self._keys, self._last_failure = read_keys(path), ""
        if not self._keys:
            raise ValueError(
                f"{path}: expected at least one key, got an empty file; add one with "
                f"{CREATE_COMMAND} >> {path}"
            )

    def find(self, key: str) -> ApiKey | None:
        """Return the entry of a key, None if the key is unknown or has expired."""
        self._reload_if_changed()
        digest, today = hash_key(key), datetime.now(UTC).date()
        # compare_digest takes the same time however many digits agree.
        matching = [entry for entry in self._keys if hmac.compare_digest(entry.digest, digest)]
        return next((entry for entry in matching if today <= entry.until), None)

    def _reload_if_changed(self) -> None:
        try:
            signature = _file_signature(self._path)
            if signature != self._signature:
                settled = _settled_signature(self._path)
                keys = read_keys(self._path)
                # A file that was written while it was read may be torn, and a file that could not
                # be read may be readable again although nothing about it has changed. Its signature
                # is kept only after success, so that the next request reads it again.
                if _file_signature(self._path) == signature:
                    self._keys, self._signature = keys, settled
            self._last_failure = ""
        except (OSError, ValueError) as error:
            # The previous keys stay valid: a typing error must not lock every client out. Requests
            # that meet the same fault again add no line to the log.
            if str(error) != self._last_failure:
                self._last_failure = str(error)
                logger.exception("keys.reload_failed", extra={"path": str(self._path)})


def _file_signature(path: Path) -> tuple[int, int, int, int]:
    """Return what changes with the content of a file: inode, size, time stamps in ns."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _settled_signature(path: Path) -> tuple[int, int, int, int] | None:
    """Return the signature of a file, None if the file changed within the last seconds.

    Some file systems store whole seconds. A second change within one of them would leave the
    signature as it is, so such a file is read at every request until it is older.
    """
    signature = _file_signature(path)
    age = time.time() - max(signature[2:]) / 1e9
    return None if abs(age) < _TIME_STAMP_STEP_S else signature


def main(argv: Sequence[str]) -> int:
    """Create a key: print its line of the key file, and the key itself on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.keys", description="Manage the API keys of the forecast service."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser(
        "create",
        help="create a key",
        description="Create an API key. The line for the key file goes to standard output and "
        "holds a hash of the key. The key itself goes to standard error and is shown only once.",
        epilog="example: python -m serve.keys create hospital-a --days 90 >> keys.txt",
    )
    create.add_argument("name", help="the client's name without spaces, such as hospital-a")
    create.add_argument(
        "--scopes",
        default=",".join(SCOPES),
        help="comma-separated permissions: read (status and results), forecast (request and "
        "delete); default: %(default)s",
    )
    create.add_argument(
        "--days", type=int, default=365, help="days until the key expires; default: %(default)s"
    )
    args = parser.parse_args(argv)
    if not args.name.isprintable() or len(args.name.split()) != 1:
        create.error("expected a name without spaces")
    scopes = tuple(args.scopes.split(","))
    if unknown := set(scopes) - set(SCOPES):
        create.error(f"expected scopes of {','.join(SCOPES)}, got {','.join(sorted(unknown))}")
    key, entry = generate_key(args.name, scopes=scopes, days=args.days)
    sys.stderr.write(f"key {entry.id} of {entry.name}, shown once: {key}\n")
    sys.stdout.write(f"{entry.line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
