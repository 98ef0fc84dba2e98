"""Base of the records that make up a forecast's summary."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict


@dataclass(frozen=True, kw_only=True)
class Record:
    """Part of the summary; a JSON document with other keys than its fields is refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
