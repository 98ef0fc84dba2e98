"""Who asked for which forecast, and how it ended, in a chain that shows what was changed later.

    python -m serve.db.audit sqlite:///out/serve/forecasts.sqlite [--head DIGEST]

Each entry holds the sha256 of the one before, so that none can be changed, added or taken out
between others unnoticed. That the last ones are missing shows only beside a digest that was kept
elsewhere: the command prints it, and compares it when it is given. No entry names a patient.
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

GENESIS_DIGEST = "0" * 64  # before the first entry
_LOCK = 960_048  # of PostgreSQL's advisory locks; SQLite has one writer at a time anyway


def append_entry(session: Session, record: Mapping[str, Any]) -> None:
    """Add an entry in the session's transaction, in which something was written already."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    last = session.scalars(
        select(AuditEntry).order_by(AuditEntry.number.desc()).limit(1)
    ).one_or_none()
    before = GENESIS_DIGEST if last is None else last.digest
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"at": at, **record}, sort_keys=True)
    number = 1 if last is None else last.number + 1
    session.add(AuditEntry(number=number, record=line, before=before, digest=_digest(before, line)))
    session.flush()


def _digest(before: str, record: str) -> str:
    return hashlib.sha256(f"{before}\n{record}".encode()).hexdigest()


def verify_chain(entries: Sequence[AuditEntry], *, head: str | None = None) -> Iterator[str]:
    """A sentence for each entry, in order, that is not as it was written."""
    before = GENESIS_DIGEST
    for number, entry in enumerate(entries, 1):
        if entry.number != number:
            yield f"entry {number}: expected it, got entry {entry.number}: some were taken out."
            return
        if entry.before != before or entry.digest != _digest(entry.before, entry.record):
            yield f"entry {number}: expected what was written, got something else."
        before = entry.digest
    if head is not None and head not in {entry.digest for entry in entries}:
        yield f"expected an entry with the digest {head[:12]}, got none: the last were taken out."


def read_entries(url: str) -> list[AuditEntry]:
    """All entries of the database at `url`, in order."""
    engine = create_engine(url)
    try:
        with Session(engine) as session:
            return list(session.scalars(select(AuditEntry).order_by(AuditEntry.number)))
    finally:
        engine.dispose()


def main(argv: Sequence[str]) -> int:
    """Verify the chain; 1 where it was broken."""
    parser = argparse.ArgumentParser(description="Verify the audit of a service's database.")
    parser.add_argument("url", help="the database, such as sqlite:///out/serve/forecasts.sqlite")
    parser.add_argument("--head", help="the digest that this command printed before")
    given = parser.parse_args(argv)
    entries = read_entries(given.url)
    found = list(verify_chain(entries, head=given.head))
    last = entries[-1].digest if entries else GENESIS_DIGEST
    lines = found or [f"{len(entries)} entries, as they were written; the last is {last}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
