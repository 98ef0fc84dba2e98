"""What became of every participant of the trial, by arm (CONSORT), and who has no outcome."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.stats import MonteCarloMethod, chi2_contingency

from lesioncast.arrays import Ints
from lesioncast.evaluation.metrics.rng import RngStream

UNKNOWN_ARM = "arm not known"
TOTAL = "total"
RANDOM_TABLES = 9999


class Stage(StrEnum):
    """How far a participant came; the last three have an arm and an outcome."""

    EXCLUDED = "excluded"
    WITHOUT_ARM = "without_arm"
    WITHOUT_OUTCOME = "without_outcome"
    TRAINING = "training"
    VALIDATION = "validation"
    TEST = "test"


WITH_OUTCOME = (Stage.TRAINING, Stage.VALIDATION, Stage.TEST)


@dataclass(frozen=True)
class Participant:
    """One participant: the arm, None if it is not known, and the stage that was reached.

    `exclusion` is the kind of the reason for which an excluded participant is not in the store.
    `scored` is true for the test cases that this evaluation scores.
    """

    arm: str | None
    stage: Stage
    exclusion: str = ""
    scored: bool = False


@dataclass(frozen=True)
class FlowCounts:
    """Participants of one arm by stage. `scored` are those of the test cases that are scored."""

    allocated: int
    excluded: int
    without_arm: int
    without_outcome: int
    training: int
    validation: int
    test: int
    scored: int

    @property
    def converted(self) -> int:
        """Return how many are in the store."""
        return self.allocated - self.excluded

    @property
    def with_outcome(self) -> int:
        """Return how many have an arm and an outcome."""
        return self.training + self.validation + self.test

    @property
    def missing_share(self) -> float:
        """Return the share of those allocated who have no outcome, for whatever reason."""
        return 1 - self.with_outcome / self.allocated


@dataclass(frozen=True)
class ParticipantFlow:
    """Participants by arm with their `TOTAL` last, and the reasons of exclusions by kind.

    `missing_by_arm_p` is the p value of the hypothesis that outcomes are missing equally often on
    all arms; None where none is missing or fewer than two arms have participants.
    """

    arms: Mapping[str, FlowCounts]
    exclusions: Mapping[str, int]
    missing_by_arm_p: float | None

    @property
    def total(self) -> FlowCounts:
        """Return the counts over all arms."""
        return self.arms[TOTAL]


def participant_flow(
    participants: Sequence[Participant], arms: Sequence[str], *, seed: int
) -> ParticipantFlow | None:
    """Count the participants by arm and stage; None without participants."""
    if not participants:
        return None
    by_arm = {
        name: _counts([one for one in participants if one.arm == arm])
        for name, arm in [*((arm, arm) for arm in arms), (UNKNOWN_ARM, None)]
    }
    given = {name: counts for name, counts in by_arm.items() if counts.allocated}
    kinds = Counter(one.exclusion for one in participants if one.stage is Stage.EXCLUDED)
    known = [counts for name, counts in given.items() if name != UNKNOWN_ARM]
    table = np.array(
        [[one.with_outcome, one.allocated - one.with_outcome] for one in known], np.int64
    ).reshape(-1, 2)
    return ParticipantFlow(
        arms=given | {TOTAL: _counts(participants)},
        exclusions=dict(kinds.most_common()),
        missing_by_arm_p=_equal_shares_p(table, seed=seed),
    )


def _counts(participants: Sequence[Participant]) -> FlowCounts:
    stages = Counter(one.stage for one in participants)
    return FlowCounts(
        allocated=len(participants),
        scored=sum(one.scored for one in participants),
        **{stage.value: stages[stage] for stage in Stage},
    )


def _equal_shares_p(table: Ints, *, seed: int) -> float | None:
    """Return the p value of equal shares in the rows of `table` [arm, 2].

    It is a chi-squared test against random tables of the same margins, so that it holds where
    counts are small. None where a column is empty or there is one row.
    """
    if len(table) < 2 or not table.sum(axis=0).all():
        return None
    rng = np.random.default_rng([int(RngStream.ATTRITION_TEST), seed])
    method = MonteCarloMethod(n_resamples=RANDOM_TABLES, rng=rng)
    return float(chi2_contingency(table, correction=False, method=method).pvalue)
