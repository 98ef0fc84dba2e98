"""All warnings that a forecast or an evaluation can carry: code, severity and plain words.

The codes are for programs, the sentences for people. platform/EVALUATION.md documents each code. A
warning never refuses a forecast.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

Severity = Literal["severe", "caution", "information"]
"""severe: do not rely on the numbers; caution: something may not hold; information: what is not
known."""

SEVERITIES: dict[str, Severity] = {
    # About the patient and the bundle.
    "real_patient_simulated_bundle": "severe",
    "untypical_patient": "severe",
    "typicality_unknown": "information",
    "beyond_training_range": "caution",
    "brain_mask_missing": "caution",
    "brain_mask_unseen": "caution",
    "days_outside_training": "caution",
    "missing_images": "information",
    "missing_covariates": "information",
    "arm_not_received_by_similar": "caution",
    # About what the bundle's evaluation found.
    "not_evaluated": "caution",
    "trials_not_named": "caution",
    "arm_never_received": "severe",
    "arms_never_compared": "caution",
    "leakage": "caution",
    "leakage_not_found": "information",
    "low_overlap": "caution",
}


@dataclass(frozen=True)
class CodedWarning:
    """A warning: `code` is a key of `SEVERITIES`, `text` one or more sentences."""

    # ConfigDict of pydantic, which GPU benchmarks do without.
    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    code: str
    severity: Severity
    text: str


def warn(code: str, text: str) -> CodedWarning:
    """Return the warning of that code. Raise KeyError if the code is not in the list."""
    return CodedWarning(code, SEVERITIES[code], text)


def texts(warnings: Iterable[CodedWarning]) -> tuple[str, ...]:
    """Return the sentences of warnings."""
    return tuple(warning.text for warning in warnings)


def severe(warnings: Iterable[CodedWarning]) -> tuple[str, ...]:
    """Return the sentences of the warnings that are severe."""
    return texts(warning for warning in warnings if warning.severity == "severe")
