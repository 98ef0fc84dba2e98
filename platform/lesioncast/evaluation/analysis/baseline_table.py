"""Baseline characteristics of each split (paper, table 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount

TOTAL = "total"


@dataclass(frozen=True)
class BySession:
    """A figure of the current session and of the outcome; None where no case shows it."""

    current: float | None
    outcome: float | None


@dataclass(frozen=True)
class BaselineCharacteristics:
    """Cases of one arm, their mean count of new lesions, and the share of them that is active.

    The lesions of the current session are new since baseline, those of the outcome since then.
    """

    cases: CaseCount
    mean_count: BySession
    active_share: BySession


BaselineTable = Mapping[str, ByGroup[BaselineCharacteristics]]
"""Split -> arm, or `TOTAL` -> characteristics."""


def baseline_characteristics(
    splits: Mapping[str, OutcomeTable], arms: Sequence[str]
) -> BaselineTable:
    """Return the characteristics of every split that has cases, lesions counted as drawn."""
    return {name: _split(cases, arms) for name, cases in splits.items() if len(cases.case)}


def _split(cases: OutcomeTable, arms: Sequence[str]) -> dict[str, BaselineCharacteristics]:
    rows = {name: _row(cases, cases.arm == index) for index, name in enumerate(arms)}
    return rows | {TOTAL: _row(cases, np.ones(len(cases.arm), bool))}


def _row(cases: OutcomeTable, member: Bools) -> BaselineCharacteristics:
    current = cases.net2_count_current[member]
    current, outcome = current[~np.isnan(current)], cases.plain[member]
    return BaselineCharacteristics(
        cases=int(member.sum()),
        mean_count=BySession(
            float(current.mean()) if len(current) else None,
            float(outcome.mean()) if len(outcome) else None,
        ),
        active_share=BySession(
            float((current > 0).mean()) if len(current) else None,
            float((outcome > 0).mean()) if len(outcome) else None,
        ),
    )
