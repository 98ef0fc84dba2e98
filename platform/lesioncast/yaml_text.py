"""Read YAML without the surprises of its syntax: repeated keys and numbers that mean another one.

YAML 1.1 keeps the last of several equal keys, reads `1_2` as 12, `010` as 8 and `1:30` as 90.
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from lesioncast.errors import ConfigError
from storage.text_files import composed

_MERGE_TAG = "tag:yaml.org,2002:merge"
_PLAIN_INTEGER = re.compile("[+-]?(0|[1-9][0-9]*)")


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that rejects repeated keys and unusual numbers, and composes accents."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 (the signature of yaml)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if key.tag == _MERGE_TAG or not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, composed(key.value)) in keys:
                raise ConstructorError(
                    None, None, f"the key {key.value} a second time", key.start_mark
                )
            keys.add((key.tag, composed(key.value)))
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return composed(str(self.construct_scalar(node)))

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(self._plain(node, _PLAIN_INTEGER))

    def construct_number(self, node: yaml.ScalarNode) -> float:
        text = str(node.value)
        if "_" in text or ":" in text:
            self._plain(node, _PLAIN_INTEGER)
        return float(self.construct_yaml_float(node))

    def _plain(self, node: yaml.ScalarNode, pattern: re.Pattern[str]) -> str:
        """Return the text of a number. Raises ConstructorError unless it is a plain decimal."""
        if not pattern.fullmatch(node.value):
            raise ConstructorError(
                None, None, f"the number {node.value}; write a plain decimal", node.start_mark
            )
        return str(node.value)


_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_text)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_integer)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_number)


def parse_yaml(text: str, *, source: str) -> Any:
    """Return the content of YAML text.

    Raises ConfigError for invalid syntax, a repeated key or a number that is not a plain decimal.
    The message is one line that names `source` and the position.
    """
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 (a subclass of SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: expected YAML, got {_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        # For example a date such as 2030-02-31, or a thousand brackets.
        raise ConfigError(f"{source}: expected YAML, got {error}") from error


def _problem(error: yaml.YAMLError) -> str:
    """Return the problem and its position on one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{problem}{where}"
