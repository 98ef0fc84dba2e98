"""The audit: who requested which forecast and how it ended, in a hash chain that shows tampering.

    python -m serve.db.audit sqlite:///out/serve/forecasts.sqlite [--head DIGEST]

Each entry holds the sha256 of the previous entry, so that no entry can be changed, inserted or
removed between others without breaking the chain. Missing entries at the end show only by
comparison with a digest that was kept elsewhere: the command prints the last digest, and compares
it if it is given. No entry names a patient.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from serve.db.models import AuditEntry
from serve.db.schema import DatabaseSchemaError, check_schema

GENESIS_DIGEST = "0" * 64
"""The `previous_digest` of the first entry."""
_ADVISORY_LOCK = 960_048  # any number that no other program locks


def append_entry(session: Session, record: Mapping[str, Any]) -> None:
    """Append an entry within the session's transaction.

    The session must have written something before: on SQLite that takes the write lock, without
    which two transactions would read the same last entry. PostgreSQL takes an advisory lock here,
    which the end of the transaction releases.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    last = session.scalars(
        select(AuditEntry).order_by(AuditEntry.sequence.desc()).limit(1)
    ).one_or_none()
    previous = GENESIS_DIGEST if last is None else last.digest
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"at": at, **record}, sort_keys=True)
    entry = AuditEntry(
        sequence=1 if last is None else last.sequence + 1,
        record=line,
        previous_digest=previous,
        digest=_digest(previous, line),
    )
    session.add(entry)
    session.flush()


def _digest(previous: str, record: str) -> str:
    return hashlib.sha256(f"{previous}\n{record}".encode()).hexdigest()


def verify_chain(entries: Sequence[AuditEntry], *, head: str | None = None) -> Iterator[str]:
    """Yield a sentence for each entry that was changed, in order.

    With `head`, the digest of an entry that must exist, missing entries at the end are found too.
    """
    previous = GENESIS_DIGEST
    for sequence, entry in enumerate(entries, 1):
        if entry.sequence != sequence:
            yield f"entry {sequence} is missing: expected it next, got entry {entry.sequence}"
            return
        intact = entry.digest == _digest(entry.previous_digest, entry.record)
        if entry.previous_digest != previous or not intact:
            yield f"entry {sequence} was changed: expected the digest of its record, got another"
        previous = entry.digest
    if head is not None and head not in {entry.digest for entry in entries}:
        yield (
            f"the last entries are missing: expected an entry with the digest {head[:12]}, got none"
        )


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
    """Verify the chain. Returns 1 if it is broken or the database has another schema."""
    parser = argparse.ArgumentParser(description="Verify the audit of a service's database.")
    parser.add_argument("url", help="the database, such as sqlite:///out/serve/forecasts.sqlite")
    parser.add_argument("--head", help="the last digest that this command printed before")
    args = parser.parse_args(argv)
    try:
        entries = read_entries(args.url)
    except DatabaseSchemaError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    faults = list(verify_chain(entries, head=args.head))
    last = entries[-1].digest if entries else GENESIS_DIGEST
    lines = faults or [f"{len(entries)} entries, as they were written; the last digest is {last}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
