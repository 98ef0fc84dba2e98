"""Parse mappings, such as YAML files, into dataclasses that are closed to unknown keys."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from lesioncast.errors import ConfigError

Parsed = typing.TypeVar("Parsed")


def parse_dataclass(kind: type[Parsed], raw: Mapping[str, Any], *, source: str) -> Parsed:
    """`raw` as the dataclass `kind`, closed to unknown keys; errors name `source` and the key."""
    _refuse_unknown(kind, raw, source=source, prefix="")
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(map(_format_error, error.errors()))) from error


def _format_error(problem: ErrorDetails) -> str:
    """Where a value is wrong and how; a class that refuses its own fields says what it got."""
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _refuse_unknown(kind: Any, raw: Mapping[str, Any], *, source: str, prefix: str) -> None:
    hints = typing.get_type_hints(kind)
    known = {each.name for each in dataclasses.fields(kind)}
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=3) or sorted(known)
            raise ConfigError(f"{source}: unknown key {prefix}{key}; nearest: {', '.join(near)}")
        section = _dataclass_in(hints[key])
        for part in value if isinstance(value, list) else [value]:
            if section is not None and isinstance(part, dict):
                _refuse_unknown(section, part, source=source, prefix=f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a mapping stands for where the type is `hint`, such as tuple[it, ...]."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_dataclass_in, typing.get_args(hint))), None)
