"""Collect what became of every participant of a trial, from its store and its table."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from lesioncast.evaluation.analysis.validity.participants import Participant, Stage
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from storage import Case, Store
from storage.trial.participants import parse_arm, read_participants, subject_id

_STAGES = {"train": Stage.TRAINING, "val": Stage.VALIDATION, "test": Stage.TEST}


def trial_participants(
    store: Store, scored: Collection[int], bids: Path
) -> tuple[Participant, ...]:
    """Return all participants: the cases of the store, and the subjects that it excluded.

    `scored` are the indices of the test cases that are scored. The arms of excluded subjects are
    read from the trial's table in `bids`; without it they are not known.
    """
    return (*_converted(store, scored), *_excluded(store, bids))


def _converted(store: Store, scored: Collection[int]) -> Iterator[Participant]:
    for case in store.cases:
        yield Participant(case.arm, _stage(case), scored=case.index in scored)


def _stage(case: Case) -> Stage:
    if case.arm is None:
        return Stage.WITHOUT_ARM
    # A case with an arm and an outcome always has one of the three splits.
    return _STAGES[case.split] if cases_with_outcome([case]) else Stage.WITHOUT_OUTCOME


def _excluded(store: Store, bids: Path) -> Iterator[Participant]:
    # A subject may be listed with several reasons; the first one counts.
    kinds: dict[str, str] = {}
    for exclusion in store.table.excluded:
        kinds.setdefault(exclusion.subject, exclusion.kind)
    arms = _arms_in_table(store, bids) if kinds else {}
    for subject, kind in kinds.items():
        yield Participant(arms.get(subject), Stage.EXCLUDED, exclusion=kind)


def _arms_in_table(store: Store, bids: Path) -> Mapping[str, str]:
    """Return the arm of each subject whose rows of the table name one arm of the store."""
    layout = store.settings.layout
    if layout.participants is None or not (bids / layout.participants).is_file():
        return {}
    rows = read_participants(bids / layout.participants, layout)
    named = [
        (subject_id(row[layout.subject_column]), parse_arm(row, layout, store.spec.arms))
        for row in rows
    ]
    several = Counter(subject for subject, _ in dict.fromkeys(named))
    return {
        subject: arm for subject, arm in named if arm in store.spec.arms and several[subject] == 1
    }
