"""A score with its interval: the leaf of every evaluation record."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % percentile bootstrap interval; None where it is undefined.

    `defined` is the share of resamples in which the score exists. Below 95 % there is no interval:
    the remaining resamples would describe another set of cases.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    defined: float = 0.0

    def as_dict(self) -> dict[str, float | None]:
        """Return the fields as JSON."""
        return asdict(self)
