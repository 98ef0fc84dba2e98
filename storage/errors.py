"""Exceptions of the storage package.

StorageError            a conversion or a store as a whole failed
  StoreError            a store is absent, incomplete or of another schema
    StoreUnavailableError  its disk, network or server does not answer for now
  CaseError             conversion excludes one subject; the others go on
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exclusion:
    """Reason why one subject is not in a store.

    `kind` is a short phrase by which summaries count. `reason` is a sentence of the form "expected
    X, got Y; do Z". `session` and `path` are empty if the reason concerns the whole subject. A case
    table has the trial's own label as `session`, a CaseError the role.
    """

    subject: str
    kind: str
    reason: str
    session: str = ""
    path: str = ""

    def __str__(self) -> str:
        session = f", ses-{self.session}" if self.session else ""
        path = f" ({self.path})" if self.path else ""
        return f"{self.subject}{session}: {self.reason}{path}"


class StorageError(Exception):
    """Root of the exceptions of this package; the text is a sentence for people."""


class StoreError(StorageError):
    """A store cannot be read as what it should be."""


class StoreUnavailableError(StoreError):
    """A store cannot be used for now: its disk, network or server fails, and may do so no longer.

    The type says so, because the cause of an error does not pass from one process to another.
    """


class CaseError(StorageError):
    """A subject cannot become a case; `exclusion` says which subject, where and why."""

    def __init__(self, exclusion: Exclusion) -> None:
        super().__init__(exclusion)
        self.exclusion = exclusion
