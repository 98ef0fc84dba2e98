"""The audit: who requested which forecast and how it ended, in a chain that shows tampering.

    python -m serve.db.audit URL --key FILE [--head DIGEST]

Each entry holds the digest of the entry before it, and an HMAC over both under a key that is not in
the database (`serve.db.audit_key`). Who can write to the table but cannot read the key can neither
change, insert or remove an entry unseen, nor write the chain anew. Two things stay unseen: entries
that are missing at the end, and whatever is done by someone who has the key. Missing ends show only
by comparison with a digest that was kept elsewhere: the command prints the last digest, the worker
logs it as `audit.head`, and `--head` compares it. No entry names a patient.

Old entries may be removed from the beginning. A signed entry then says up to which one.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from sqlalchemy import create_engine, delete, select, text
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from serve.db.audit_key import AuditKeyError, AuditKeys, read_audit_keys
from serve.db.models import AuditEntry
from serve.db.schema import DatabaseSchemaError, check_schema

GENESIS_DIGEST = "0" * 64
"""The `previous_digest` of the first entry."""
PRUNED_EVENT = "audit_pruned"
"""Event of the entry that says up to which one the audit was removed."""
_ADVISORY_LOCK = 960_048  # any number that no other program locks
_BATCH = 1000  # entries that are read at a time


def append_entry(session: Session, record: Mapping[str, Any], keys: AuditKeys) -> AuditEntry:
    """Append an entry within the session's transaction, and return it.

    The session must have written something before: on SQLite that takes the write lock, without
    which two transactions would read the same last entry. PostgreSQL takes an advisory lock here,
    which the end of the transaction releases.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    last = last_entry(session)
    previous = GENESIS_DIGEST if last is None else last.digest
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"at": at, **record}, sort_keys=True)
    signed_with, digest = keys.sign(_message(previous, line))
    entry = AuditEntry(
        sequence=1 if last is None else last.sequence + 1,
        record=line,
        previous_digest=previous,
        digest=digest,
        key_id=signed_with,
    )
    session.add(entry)
    session.flush()
    return entry


def last_entry(session: Session) -> AuditEntry | None:
    """Return the entry at the end, None if there is none."""
    return session.scalars(
        select(AuditEntry).order_by(AuditEntry.sequence.desc()).limit(1)
    ).one_or_none()


def prune(session: Session, before: datetime, keys: AuditKeys) -> int:
    """Remove the entries from before a time, and append one that says so. Returns their number."""
    last: AuditEntry | None = None
    oldest = select(AuditEntry).order_by(AuditEntry.sequence).limit(_BATCH)
    while entries := session.scalars(
        oldest.where(AuditEntry.sequence > (0 if last is None else last.sequence))
    ).all():
        old = [entry for entry in entries if _written(entry) < before]
        last = old[-1] if old else last
        if len(old) < len(entries):
            break
    if last is None:
        return 0
    through, digest = last.sequence, last.digest
    # This also takes SQLite's write lock. The last of the old entries stays until the new one,
    # which follows the end of the chain, is there.
    removed = session.execute(delete(AuditEntry).where(AuditEntry.sequence < through))
    append_entry(session, {"event": PRUNED_EVENT, "through": through, "digest": digest}, keys)
    session.execute(delete(AuditEntry).where(AuditEntry.sequence == through))
    return cast("CursorResult[Any]", removed).rowcount + 1


def _written(entry: AuditEntry) -> datetime:
    return datetime.fromisoformat(json.loads(entry.record)["at"])


def _message(previous: str, record: str) -> str:
    return f"{previous}\n{record}"


def verify_chain(
    entries: Sequence[AuditEntry], keys: AuditKeys, *, head: str | None = None
) -> Iterator[str]:
    """Yield a sentence for each entry that was changed, in order.

    With `head`, the digest of an entry that must exist, missing entries at the end are found too.
    """
    first, previous = _beginning(entries, keys)
    for sequence, entry in enumerate(entries, first):
        if entry.sequence != sequence:
            yield f"entry {sequence} is missing: expected it next, got entry {entry.sequence}"
            return
        if not keys.knows(entry.key_id):
            yield (
                f"entry {sequence} cannot be verified: expected the key {entry.key_id} in the key "
                "file, got other keys"
            )
        elif entry.previous_digest != previous or not _is_signed(entry, keys):
            yield f"entry {sequence} was changed: expected the digest of its record, got another"
        previous = entry.digest
    if head is not None and head not in {entry.digest for entry in entries}:
        yield (
            f"the last entries are missing: expected an entry with the digest {head[:12]}, got none"
        )


def _is_signed(entry: AuditEntry, keys: AuditKeys) -> bool:
    message = _message(entry.previous_digest, entry.record)
    return keys.is_signature(entry.digest, message, signed_with=entry.key_id)


def _beginning(entries: Sequence[AuditEntry], keys: AuditKeys) -> tuple[int, str]:
    """Return the number that the first entry should have, and the digest before it.

    That is 1, unless a signed entry says that all before the first one were removed.
    """
    if entries and entries[0].sequence > 1:
        for entry in entries:
            record = json.loads(entry.record) if _is_signed(entry, keys) else {}
            if record.get("event") == PRUNED_EVENT and record["through"] == entries[0].sequence - 1:
                return entries[0].sequence, str(record["digest"])
    return 1, GENESIS_DIGEST


def read_entries(url: str) -> list[AuditEntry]:
    """Read all entries of a database in order. Raises DatabaseSchemaError for another schema."""
    engine = create_engine(url)
    try:
        check_schema(engine)
        with Session(engine) as session:
            return list(session.scalars(select(AuditEntry).order_by(AuditEntry.sequence)))
    finally:
        engine.dispose()


def main(argv: Sequence[str]) -> int:
    """Verify the chain. Returns 1 if it is broken, or if the database or the keys do not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.db.audit", description="Verify the audit of a service's database."
    )
    parser.add_argument("url", help="the database, such as sqlite:///out/serve/forecasts.sqlite")
    parser.add_argument(
        "--key", type=Path, required=True, help="the file of the keys that signed the audit"
    )
    parser.add_argument("--head", help="the last digest that this command printed before")
    args = parser.parse_args(argv)
    try:
        keys, entries = read_audit_keys(args.key), read_entries(args.url)
    except (AuditKeyError, DatabaseSchemaError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    faults = list(verify_chain(entries, keys, head=args.head))
    last = entries[-1].digest if entries else GENESIS_DIGEST
    lines = faults or [f"{len(entries)} entries, as they were written; the last digest is {last}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
