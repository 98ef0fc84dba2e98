"""Who is in the cohort: the paper's table 1, of each split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.features.outcomes import OutcomeTable

Record = dict[str, Any]
Bools = npt.NDArray[np.bool_]
TOTAL = "total"


def baseline_characteristics(splits: Mapping[str, OutcomeTable], arms: Sequence[str]) -> Record:
    """Cases, mean count and share active at w048 and w096 by split and arm, lesions as drawn.

    w048 is measured against w000 and w096 against w048. Null where no case shows it.
    """
    return {name: _split(cases, arms) for name, cases in splits.items() if len(cases.case)}


def _split(cases: OutcomeTable, arms: Sequence[str]) -> Record:
    rows = {name: _row(cases, cases.arm == place) for place, name in enumerate(arms)}
    return rows | {TOTAL: _row(cases, np.ones(len(cases.arm), bool))}


def _row(cases: OutcomeTable, member: Bools) -> Record:
    earlier = cases.earlier[member]
    at = {"w048": earlier[~np.isnan(earlier)], "w096": cases.plain[member]}
    return {
        "cases": int(member.sum()),
        "count": {week: float(n.mean()) if len(n) else None for week, n in at.items()},
        "activity": {week: float((n > 0).mean()) if len(n) else None for week, n in at.items()},
    }
