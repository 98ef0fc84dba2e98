"""The version of the database's tables.

A database that another version of the service made is refused: its columns differ, and rows of
unfinished forecasts cannot be converted without their bundle.
"""

from sqlalchemy import Engine, inspect
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from lesioncast.errors import LesioncastError
from serve.db.models import AuditEntry, Base, ForecastJob, SchemaVersion

SCHEMA_VERSION = 3
MAX_ATTEMPTS = 10


class DatabaseSchemaError(LesioncastError):
    """A database that another version of the service made."""


def create_tables(engine: Engine) -> None:
    """Create the tables that are missing. Raises DatabaseSchemaError for another schema."""
    check_schema(engine)
    for attempt in range(MAX_ATTEMPTS):
        try:
            _create(engine)
            break
        except DatabaseError:
            # Another process created the same table between the look for it and its creation. Each
            # attempt finds more tables, so that a few are enough.
            if attempt == MAX_ATTEMPTS - 1:
                raise
    check_schema(engine)


def _create(engine: Engine) -> None:
    # The table of the version comes first. SQLite commits after each table, and another process
    # that starts meanwhile must not take a half-made database for an old one.
    Base.metadata.create_all(engine, tables=[Base.metadata.tables[SchemaVersion.__tablename__]])
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        if session.get(SchemaVersion, SCHEMA_VERSION) is None and not _versions(session):
            session.add(SchemaVersion(version=SCHEMA_VERSION))


def check_schema(engine: Engine) -> None:
    """Raise DatabaseSchemaError if another version of the service made the tables."""
    tables = set(inspect(engine).get_table_names())
    versions: list[int] = []
    if SchemaVersion.__tablename__ in tables:
        with Session(engine) as session:
            versions = _versions(session)
    elif tables & {ForecastJob.__tablename__, AuditEntry.__tablename__}:
        versions = [1]  # the first version kept no number
    if versions not in ([], [SCHEMA_VERSION]):
        url = engine.url.render_as_string(hide_password=True)
        raise DatabaseSchemaError(
            f"{url}: expected a database of schema {SCHEMA_VERSION}, got schema {versions[0]}, "
            "which another version of lesioncast made; move it away or set database= to a new one"
        )


def _versions(session: Session) -> list[int]:
    return [row.version for row in session.query(SchemaVersion)]
