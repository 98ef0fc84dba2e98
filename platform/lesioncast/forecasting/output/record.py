"""Base of the records that make up a forecast's summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Record:
    """Part of the summary; a JSON document with other keys than its fields is refused."""

    # ConfigDict of pydantic, which GPU benchmarks do without.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}
