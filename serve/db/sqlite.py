"""Settings of SQLite: durable commits, and no bytes of deleted rows in its files."""

from contextlib import suppress
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

BUSY_TIMEOUT_MS = 20_000
SCRUB_TIMEOUT_MS = 500


def set_up_sqlite(connection: Any, _: object) -> None:
    """Set up a new connection."""
    # WAL lets readers go on while one process writes, FULL makes a commit survive a power cut, and
    # the timeout makes a second writer wait rather than fail. Deleted rows are overwritten with
    # zeros: by default they stay in the file.
    settings = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON")
    for pragma in (*settings, f"busy_timeout={BUSY_TIMEOUT_MS}"):
        connection.execute(f"PRAGMA {pragma}")


def empty_journal(engine: Engine) -> None:
    """Empty the journal (WAL) of a SQLite database, which keeps pages from before a deletion.

    Somebody who reads at this moment can prevent it; then it has to be done again later.
    """
    # A busy database is no error of the change, which is committed.
    with suppress(OperationalError), engine.connect() as connection:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={SCRUB_TIMEOUT_MS}")
        try:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
