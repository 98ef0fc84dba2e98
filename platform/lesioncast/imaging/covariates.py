"""What a model is told of a patient beside the images: covariates of the case table as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lesioncast.errors import ConfigError

if TYPE_CHECKING:  # diffusion imports this module and must run with torch alone
    from storage import Case

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Covariate:
    """A number, given to the network as (value - centre) / scale, or a word among `levels`."""

    name: str
    centre: float = 0.0
    scale: float = 1.0
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"the scale of {self.name} must be above 0, got {self.scale}")

    def encode(self, value: str | float | None) -> float:
        """The standardised number or the place among the levels; NaN where there is no such."""
        if self.levels:
            text = str(value)
            return float(self.levels.index(text)) if text in self.levels else math.nan
        if value is None or isinstance(value, str):
            return math.nan
        return (value - self.centre) / self.scale


def fit_covariates(
    wanted: Sequence[str | Covariate], cases: Iterable[Case]
) -> tuple[Covariate, ...]:
    """The wanted covariates, those that are only named with what the (training) `cases` show.

    Numbers get their mean as centre and their standard deviation as scale, words their levels.
    Raises ConfigError where the cases have no such covariate, or nothing to learn from it.
    """
    rows = [case.covariates for case in cases]
    names = sorted({name for row in rows for name in row})
    for each in wanted:
        name = each if isinstance(each, str) else each.name
        if name not in names:
            raise ConfigError(
                f"covariates: expected some of {', '.join(names) or 'none, for the store has none'}"
                f", got {name}; name a column of the trial's participants.tsv"
            )
    return tuple(
        _fit(each, [row[each] for row in rows if row.get(each) is not None])
        if isinstance(each, str)
        else each
        for each in wanted
    )


def _fit(name: str, known: Sequence[str | float | None]) -> Covariate:
    words = sorted({value for value in known if isinstance(value, str)})
    numbers = np.array([value for value in known if not isinstance(value, str)], np.float64)
    if words and len(numbers):
        raise ConfigError(
            f"covariates: expected numbers or words as {name}, got both, such as {numbers[0]:g} "
            f"and {words[0]}; write n/a for what is not known, or give its levels"
        )
    if len(set(known)) < 2:
        raise ConfigError(
            f"covariates: expected training cases that differ in {name}, got "
            f"{known[0] if known else 'none where it is known'}; leave it out"
        )
    if words:
        return Covariate(name, levels=tuple(words))
    return Covariate(name, centre=float(numbers.mean()), scale=float(numbers.std()))


def encode_covariates(covariates: Sequence[Covariate], case: Case) -> Values:
    """[covariate]: NaN where the case lacks one or has a level that training did not know."""
    return np.array(
        [each.encode(case.covariates.get(each.name)) for each in covariates], np.float32
    )


def covariate_presence(covariates: Sequence[Covariate], case: Case) -> dict[str, bool]:
    """Which covariates the case gives to the network, by name."""
    values = encode_covariates(covariates, case)
    return {
        each.name: bool(np.isfinite(value)) for each, value in zip(covariates, values, strict=True)
    }
