"""Say to which subgroups of sex, age and trial each case belongs."""

from collections.abc import Mapping, Sequence

import numpy as np

from storage import Case

SEX, AGE, TRIAL = "sex", "age", "trial"


def subgroup_labels(
    train: Sequence[Case], test: Sequence[Case]
) -> Mapping[str, tuple[str | None, ...]]:
    """Return, by variable, the subgroup of each test case, None where it is unknown.

    Sex and age are the columns of that name in the table of participants. Age is divided at the
    median of the training cases. A variable that no test case has is left out.
    """
    labels = {
        SEX: tuple(_word(case.covariates.get(SEX)) for case in test),
        AGE: _age_groups(train, test),
        TRIAL: tuple(case.trial for case in test),
    }
    return {variable: label for variable, label in labels.items() if any(label)}


def _word(value: object) -> str | None:
    return None if value is None else str(value)


def _age(case: Case) -> float | None:
    value = case.covariates.get(AGE)
    return float(value) if isinstance(value, int | float) else None


def _age_groups(train: Sequence[Case], test: Sequence[Case]) -> tuple[str | None, ...]:
    known = [age for age in map(_age, train) if age is not None]
    if not known:
        return (None,) * len(test)
    median = float(np.median(known))
    groups = (f"up to {median:g} years", f"above {median:g} years")
    ages = [_age(case) for case in test]
    return tuple(None if age is None else groups[age > median] for age in ages)
