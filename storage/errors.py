"""What can go wrong in this room, as one small tree.

StorageError            a conversion or a store as a whole
  StoreError            a store that is absent, incomplete or of another schema
  CaseError             one subject that conversion refuses; the others go on
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exclusion:
    """Why one subject is not in a store.

    `kind` is a short phrase that summaries count by; `reason` is the sentence (expected, got, do).
    `session` and `path` are empty where the reason concerns the whole subject.
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
    """The root of this room's errors; its text is a sentence for people."""


class StoreError(StorageError):
    """A store cannot be read as what it should be."""


class CaseError(StorageError):
    """A subject cannot become a case; `refusal` says which, where and why."""

    def __init__(self, refusal: Exclusion) -> None:
        super().__init__(refusal)
        self.refusal = refusal
