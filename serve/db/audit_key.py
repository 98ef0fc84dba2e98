"""Keys that sign the audit, in a file outside of the database.

    python -m serve.db.audit_key /somewhere/audit.key    # create the file, or add a key to rotate

A line holds one key as 64 hexadecimal digits. The last one signs; the earlier ones verify entries
that they signed. The id of a key is the first eight digits of its sha256.
"""

import argparse
import hmac
import os
import re
import secrets
import stat
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesioncast.errors import LesioncastError
from storage.digest import sha256_bytes
from storage.private_files import private_file
from storage.text_files import read_text

CREATE_COMMAND = "python -m serve.db.audit_key FILE"
_OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IRWXO


class AuditKeyError(LesioncastError):
    """A file of audit keys that is missing, malformed or open to other users."""


@dataclass(frozen=True)
class AuditKeys:
    """The keys of one file, oldest first."""

    keys: tuple[bytes, ...]

    def sign(self, message: str) -> tuple[str, str]:
        """Return the id of the newest key and the HMAC-SHA-256 of a message under it."""
        return key_id(self.keys[-1]), _hmac(self.keys[-1], message)

    def knows(self, signed_with: str) -> bool:
        """Return True if the file holds the key of an id."""
        return any(key_id(key) == signed_with for key in self.keys)

    def is_signature(self, digest: str, message: str, *, signed_with: str) -> bool:
        """Return True if `digest` is the HMAC of a message under the key of an id."""
        return any(
            hmac.compare_digest(_hmac(key, message), digest)
            for key in self.keys
            if key_id(key) == signed_with
        )


def key_id(key: bytes) -> str:
    """Return the public identifier of a key; it does not reveal the key."""
    return sha256_bytes(key)[:8]


def _hmac(key: bytes, message: str) -> str:
    return hmac.new(key, message.encode(), "sha256").hexdigest()


def read_audit_keys(path: Path) -> AuditKeys:
    """Read the keys of a file. Raises AuditKeyError that names the file and the line."""
    try:
        lines = read_text(path).split()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError) as error:
        raise AuditKeyError(
            f"{path}: expected a file of audit keys, got {error}; restore it, or make one with "
            f"{CREATE_COMMAND}"
        ) from error
    if mode & _OPEN_TO_OTHERS:
        raise AuditKeyError(
            f"{path}: expected a file that only its owner and group can read, got mode {mode:04o}; "
            "run chmod 600 on it, or set defaultMode: 0440 for a Kubernetes secret"
        )
    for number, line in enumerate(lines, 1):
        if not re.fullmatch("[0-9a-f]{64}", line):
            raise AuditKeyError(
                f"{path}, line {number}: expected 64 hexadecimal digits, got something else; add a "
                f"key with {CREATE_COMMAND}"
            )
    if not lines:
        raise AuditKeyError(f"{path}: expected a key, got an empty file; run {CREATE_COMMAND}")
    return AuditKeys(tuple(map(bytes.fromhex, lines)))


def create_audit_keys(path: Path) -> None:
    """Create a file with one random key and mode 0600, unless the file exists.

    Processes that start at the same time end up with one file: a link fails if its name exists.
    """
    if path.exists():  # perhaps on a read-only file system, such as a Kubernetes secret
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = private_file(path.with_name(f".{path.name}.{uuid.uuid4().hex}"))
    try:
        with partial.open("w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def add_audit_key(path: Path) -> AuditKeys:
    """Add a random key to a file. Returns all its keys; the new one is the last."""
    read_audit_keys(path)
    with path.open("a") as file:  # the mode of the file stays as it is
        file.write(f"\n{secrets.token_hex(32)}\n")
        file.flush()
        os.fsync(file.fileno())
    return read_audit_keys(path)


def main(argv: Sequence[str]) -> int:
    """Create a file of audit keys, or add a key to one. Returns 1 for a file that is no such."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.db.audit_key",
        description="Create the file of the keys that sign the audit, or add a key to it. The new "
        "key signs once the service is started again. Earlier keys are kept to verify.",
    )
    parser.add_argument("file", type=Path, help="the file, outside of the database")
    path = parser.parse_args(argv).file
    try:
        if path.exists():
            keys = add_audit_key(path)
        else:
            create_audit_keys(path)
            keys = read_audit_keys(path)
    except AuditKeyError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}: {len(keys.keys)} keys; {key_id(keys.keys[-1])} signs from now on\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
