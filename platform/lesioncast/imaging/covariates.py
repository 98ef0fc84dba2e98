"""Encode a patient's covariates, such as age and sex, as numbers for a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lesioncast.errors import ConfigError

if TYPE_CHECKING:  # diffusion imports this module and must run without storage and its packages
    from storage import Case

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Covariate:
    """A number that is standardised as (value - centre) / scale, or a word among `levels`."""

    name: str
    centre: float = 0.0
    scale: float = 1.0
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"the scale of {self.name} must be above 0, got {self.scale}")

    def encode(self, value: str | float | None) -> float:
        """Return the standardised number or the index of the level; NaN if missing or unknown."""
        if self.levels:
            text = str(value)
            return float(self.levels.index(text)) if text in self.levels else math.nan
        if value is None or isinstance(value, str):
            return math.nan
        return (value - self.centre) / self.scale


def fit_covariates(
    requested: Sequence[str | Covariate], cases: Iterable[Case]
) -> tuple[Covariate, ...]:
    """Return the requested covariates, fitting those given by name only on the training `cases`.

    The days between sessions are covariates, too: days_to_current and days_to_outcome. A number
    gets its mean as centre and its standard deviation as scale. A word gets its levels.
    Raises ConfigError if the cases lack the covariate or all have the same value.
    """
    rows = [covariate_values(case) for case in cases]
    available = sorted({name for row in rows for name in row})
    for covariate in requested:
        name = covariate if isinstance(covariate, str) else covariate.name
        if name not in available:
            choices = ", ".join(available) or "none, for the store has none"
            raise ConfigError(
                f"covariates: expected some of {choices}, got {name}; "
                "name a column of the trial's participants.tsv, or an interval that dates give"
            )
    return tuple(
        _fit(covariate, [row[covariate] for row in rows if row.get(covariate) is not None])
        if isinstance(covariate, str)
        else covariate
        for covariate in requested
    )


def covariate_values(case: Case) -> dict[str, str | float | None]:
    """Return the columns of a case's table and the days between its sessions that are known."""
    days = {name: value for name, value in vars(case.intervals).items() if value is not None}
    return {**case.covariates, **days}


def _fit(name: str, values: Sequence[str | float | None]) -> Covariate:
    """Fit one covariate on its known values."""
    # Here and not above, so that the module itself runs without storage.
    from storage.trial.cells import looks_like_number  # noqa: PLC0415

    words = sorted({value for value in values if isinstance(value, str)})
    numbers = np.array([value for value in values if not isinstance(value, str)], np.float64)
    if words and len(numbers):
        raise ConfigError(
            f"covariates: expected numbers or words as {name}, got both, such as {numbers[0]:g} "
            f"and {words[0]}; write n/a for an unknown value, or give the levels of {name}"
        )
    if intended := [word for word in words if looks_like_number(word)]:
        raise ConfigError(
            f"covariates: expected plain numbers or words as {name}, got {intended[0]!r}; write "
            f"numbers as 34.5 and convert again, or give the levels of {name}"
        )
    if len(set(values)) < 2:
        raise ConfigError(
            f"covariates: expected training cases that differ in {name}, got "
            f"{values[0] if values else 'no known value'}; leave it out"
        )
    if words:
        return Covariate(name, levels=tuple(words))
    return Covariate(name, centre=float(numbers.mean()), scale=float(numbers.std()))


def encode_covariates(covariates: Sequence[Covariate], case: Case) -> Values:
    """Return the case's encoded covariates, [covariate]; NaN if missing or of an unknown level."""
    values = covariate_values(case)
    return np.array(
        [covariate.encode(values.get(covariate.name)) for covariate in covariates], np.float32
    )


def covariate_presence(covariates: Sequence[Covariate], case: Case) -> dict[str, bool]:
    """Return, by name, whether the case has a usable value of each covariate."""
    values = encode_covariates(covariates, case)
    return {
        covariate.name: bool(np.isfinite(value))
        for covariate, value in zip(covariates, values, strict=True)
    }
