"""Parse mappings, such as YAML files, into dataclasses that are closed to unknown keys."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from lesioncast.errors import ConfigError

if typing.TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Parsed = typing.TypeVar("Parsed")


def parse_dataclass(kind: type[Parsed], raw: Mapping[str, Any], *, source: str) -> Parsed:
    """Parse the mapping `raw` into the dataclass `kind`.

    Raises ConfigError for an unknown key or an invalid value. The message names `source` (a file,
    for example) and the key.
    """
    # GPU benchmarks import modules that parse files, and do without pydantic.
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    _reject_unknown_keys(kind, raw, source=source, prefix="")
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(map(_format_error, error.errors()))) from error


@dataclasses.dataclass(frozen=True)
class RemovedKeys:
    """Names that a configuration no longer takes."""

    #: New name of each old dotted key, such as store.split; None for a key without successor.
    keys: Mapping[str, str | None]
    #: New value of each old value, by dotted key and old value.
    values: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    #: Why an old dotted key has no successor, where the user needs to know.
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


def refuse_removed(raw: Mapping[str, Any], removed: RemovedKeys, *, source: str) -> None:
    """Raise ConfigError for the first key or value of `raw` that has a new name, and say which."""
    for key, value in _dotted(raw):
        if key in removed.keys:
            new = removed.keys[key]
            reason = f": {removed.reasons[key]}" if key in removed.reasons else ""
            advice = "remove it" if new is None else f"write {new} in its place"
            raise ConfigError(f"{source}: {key} is an old key; {advice}{reason}")
        if isinstance(value, str) and (key, value) in removed.values:
            raise ConfigError(
                f"{source}: {key}: {value} is an old name; "
                f"write {removed.values[key, value]} in its place"
            )


def _dotted(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield every key of nested mappings as a dotted key, parents first, with its value."""
    for key, value in raw.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")


def _format_error(problem: "ErrorDetails") -> str:
    """Return the key of an invalid value, the reason and the value as one sentence.

    A ValueError of a dataclass's own checks says already which value it got.
    """
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{where}: {reason}" if where else reason  # a check of all keys names its own
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _reject_unknown_keys(kind: Any, raw: Mapping[str, Any], *, source: str, prefix: str) -> None:
    """Raise ConfigError for the first key of `raw` that is not a field, with the nearest fields.

    pydantic could forbid unknown keys too, but its message does not suggest the nearest names.
    """
    hints = typing.get_type_hints(kind)
    field_names = {field.name for field in dataclasses.fields(kind)}
    for key, value in raw.items():
        if key not in field_names:
            nearest = difflib.get_close_matches(str(key), field_names, n=3) or sorted(field_names)
            raise ConfigError(f"{source}: unknown key {prefix}{key}; nearest: {', '.join(nearest)}")
        section = _find_dataclass(hints[key])
        for item in value if isinstance(value, list) else [value]:
            if section is not None and isinstance(item, dict):
                _reject_unknown_keys(section, item, source=source, prefix=f"{prefix}{key}.")


def _find_dataclass(hint: Any) -> Any:
    """Return the first dataclass inside a type hint such as tuple[Covariate, ...], or None."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_find_dataclass, typing.get_args(hint))), None)
