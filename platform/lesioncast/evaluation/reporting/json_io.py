"""Evaluation reports as JSON: the one place that writes metrics.json and reads it back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from lesioncast.errors import EvaluationReportError
from lesioncast.evaluation.analysis.schema import SCHEMA, EvaluationReport
from storage.text_files import TextEncodingError, read_text

_ADAPTER = TypeAdapter(EvaluationReport)


def report_to_json(report: EvaluationReport) -> str:
    """Return the report as JSON text. Raise ValueError where a figure is not finite."""
    content = _ADAPTER.dump_python(report, mode="json")
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_report(path: Path) -> EvaluationReport:
    """Read the report at `path`.

    Raise EvaluationReportError where it cannot be read, has another schema, or has fields that the
    schema lacks.
    """
    try:
        text = read_text(path)
    except (OSError, TextEncodingError) as error:
        raise EvaluationReportError(
            f"{path}: expected an evaluation report, got {error}; {_AGAIN}"
        ) from error
    return report_from_json(text, source=str(path))


def report_from_json(text: str, *, source: str) -> EvaluationReport:
    """Return the report of JSON text; errors name `source` and the field."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise EvaluationReportError(f"{source}: expected JSON, got {error}; {_AGAIN}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise EvaluationReportError(
            f"{source}: expected an evaluation report in schema {SCHEMA}, got {schema}; {_AGAIN}"
        )
    try:
        report = _ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise EvaluationReportError(
            f"{source}: {field}: {problem['msg']}, got {problem['input']!r}; {_AGAIN}"
        ) from error
    # Pydantic drops fields that a dataclass lacks, so what was read is compared with what was kept.
    for field in _dropped_fields(content, _ADAPTER.dump_python(report, mode="json"), ""):
        raise EvaluationReportError(f"{source}: unknown field {field}; {_AGAIN}")
    return report


_AGAIN = "run jobs/evaluate.py again"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the figure {name}")


def _dropped_fields(content: Any, kept: Any, path: str) -> Iterator[str]:
    """Yield the paths of all fields in `content` that `kept` lacks."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name not in kept:
                yield f"{path}{name}"
            else:
                yield from _dropped_fields(value, kept[name], f"{path}{name}.")
    elif isinstance(content, list):
        for index, (value, kept_value) in enumerate(zip(content, kept, strict=True)):
            yield from _dropped_fields(value, kept_value, f"{path}{index}.")
