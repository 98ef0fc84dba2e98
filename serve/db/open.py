"""Open the service's database as its settings say, with files that only the service can read."""

from pathlib import Path

from sqlalchemy import create_engine, inspect, make_url, select
from sqlalchemy.orm import Session

from serve.db.audit_key import CREATE_COMMAND, AuditKeyError, create_audit_keys, read_audit_keys
from serve.db.models import AuditEntry
from serve.db.repository import JobRepository
from serve.db.schema import check_schema
from serve.settings import ServiceSettings
from storage.private_files import private_file, private_folder


def open_repository(settings: ServiceSettings) -> JobRepository:
    """Open the jobs of a service. The first start creates folder, database and audit key.

    Raises StorageError for files that other users can reach, DatabaseSchemaError for a database of
    another version, and AuditKeyError if the key of an existing audit is missing.
    """
    private_folder(settings.artifacts.resolve())  # an operator may have put a link there
    database = make_url(settings.database_url)
    if database.get_backend_name() == "sqlite" and database.database:
        private_file(Path(database.database))
    path = settings.audit_key_path
    # The path is looked up again after the entries: another replica may just have created both.
    if not path.exists() and _has_audit(settings.database_url) and not path.exists():
        raise AuditKeyError(
            f"{path}: expected the key that signed the audit of this database, got no file; "
            f"restore it from the backup, or start a new signature with {CREATE_COMMAND}"
        )
    create_audit_keys(path)
    return JobRepository(settings.database_url, read_audit_keys(path))


def _has_audit(url: str) -> bool:
    engine = create_engine(url)
    try:
        check_schema(engine)
        if not inspect(engine).has_table(AuditEntry.__tablename__):
            return False
        with Session(engine) as session:
            return session.scalars(select(AuditEntry.sequence).limit(1)).first() is not None
    finally:
        engine.dispose()
