"""API keys, kept as hashes in a file that is read again whenever it changes.

A line of the file is a client's name, the sha256 of a key, what the key may do, and the last day on
which it may, as `python -m serve.api.middleware` prints it. Keys are 256 random bits, so a fast
hash is enough; its first eight letters are the key's id. Several lines of one name are one client
with several keys: a key is rotated by adding a line, and later taking the old one out.
"""

import hmac
import re
import secrets
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from serve.log import logger
from storage.digest import sha256_bytes

READ, FORECAST = "read", "forecast"
SCOPES = (READ, FORECAST)


class ApiKey(NamedTuple):
    """One key of a client, without the key itself."""

    name: str
    digest: str
    scopes: tuple[str, ...]
    until: date

    @property
    def id(self) -> str:
        """What it is called where it is not to be known."""
        return self.digest[:8]

    @property
    def line(self) -> str:
        """As it stands in the file."""
        return f"{self.name} {self.digest} {','.join(self.scopes)} {self.until.isoformat()}"


def hash_key(key: str) -> str:
    """What is kept of a key."""
    return sha256_bytes(key.encode())


def generate_key(name: str, *, scopes: tuple[str, ...], days: int) -> tuple[str, ApiKey]:
    """A key and what is kept of it."""
    key = secrets.token_urlsafe(32)
    until = datetime.now(UTC).date() + timedelta(days=days)
    return key, ApiKey(name, hash_key(key), scopes, until)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All keys of a file, expired ones too. Raises ValueError, naming the line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip())


def _parse(path: Path, number: int, line: str) -> ApiKey:
    words = line.split()
    try:
        name, digest, scopes, until = words
        key = ApiKey(name, digest, tuple(scopes.split(",")), date.fromisoformat(until))
        if not re.fullmatch("[0-9a-f]{64}", digest) or not set(key.scopes) <= set(SCOPES):
            raise ValueError(line)
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number}: expected a name, a sha256, some of {','.join(SCOPES)} and a "
            f"day, got {len(words)} words that are not; make it with python -m serve.api.middleware"
        ) from error
    return key


class ApiKeyFile:
    """The keys that count now. While a changed file cannot be read, or changes as it is read, those
    before it count; one that was emptied takes all keys back.

    Raises ValueError where there is none to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._state = path, _file_signature(path)
        self._keys = read_keys(path)
        if not self._keys:
            raise ValueError(
                f"{path}: expected a key or more; make one with python -m serve.api.middleware"
            )

    def find(self, key: str) -> ApiKey | None:
        """What is known of a key, None where it is unknown or has expired."""
        self._refresh()
        digest, today = hash_key(key), datetime.now(UTC).date()
        known = [each for each in self._keys if hmac.compare_digest(each.digest, digest)]
        return next((each for each in known if today <= each.until), None)

    def _refresh(self) -> None:
        try:
            state = _file_signature(self._path)
            if state != self._state:
                self._state = state
                keys = read_keys(self._path)
                if _file_signature(self._path) == state:
                    self._keys = keys
        except (OSError, ValueError):
            logger.exception("the keys stay as they were")


def _file_signature(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
