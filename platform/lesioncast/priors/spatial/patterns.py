"""Patterns of presence: which kinds of input a patient has. Each has weights of its own."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from lesioncast.priors.spatial.inputs import SpatialInputs


class LesionHistory(StrEnum):
    """What is known of older lesions."""

    #: T2 lesions of w048, or those of w000 and the new ones since then.
    COMPLETE = "complete"
    #: T2 lesions of w000 alone.
    BASELINE = "baseline"
    #: Only the new lesions between w000 and w048.
    NEW = "new"
    NONE = "none"


@dataclass(frozen=True)
class Pattern:
    """Which kinds of input there are."""

    parcellation: bool
    flair: bool
    history: LesionHistory

    @property
    def name(self) -> str:
        """Return a name for files and tables, such as "parcellation+flair+complete"."""
        parts = [name for name in ("parcellation", "flair") if getattr(self, name)]
        return "+".join([*parts, self.history.value])

    @property
    def empty(self) -> bool:
        """Return whether there is nothing to read, so that only the atlas remains."""
        return self == NOTHING


NOTHING = Pattern(False, False, LesionHistory.NONE)  # noqa: FBT003, fields in the order of the class
PATTERNS = tuple(
    Pattern(parcellation, flair, history)
    for parcellation, flair, history in product((True, False), (True, False), LesionHistory)
    if parcellation or flair or history is not LesionHistory.NONE
)
"""All patterns with something to read, the most informative first."""


def pattern_of(inputs: SpatialInputs) -> Pattern:
    """Return the pattern of a patient's inputs."""
    return Pattern(
        parcellation=inputs.parcellation is not None,
        flair=bool(inputs.flairs()),
        history=_history(inputs),
    )


def _history(inputs: SpatialInputs) -> LesionHistory:
    baseline, current, new = (
        name in inputs.channels for name in ("w000/t2", "w048/t2", "w048/net2")
    )
    if current or (baseline and new):
        return LesionHistory.COMPLETE
    if baseline:
        return LesionHistory.BASELINE
    return LesionHistory.NEW if new else LesionHistory.NONE


def reduced(inputs: SpatialInputs, pattern: Pattern) -> SpatialInputs | None:
    """Return the inputs without what `pattern` lacks; None if they lack what it has."""
    hidden = set()
    if not pattern.flair:
        hidden |= {"w000/flair", "w048/flair"}
    match pattern.history:
        case LesionHistory.NONE:
            hidden |= {"w000/t2", "w048/t2", "w048/net2", "w000/gad", "w048/gad"}
        case LesionHistory.BASELINE:
            # Who has no mask of w048 most often has no FLAIR of it either.
            hidden |= {"w048/flair", "w048/t2", "w048/net2", "w048/gad"}
        case LesionHistory.NEW:
            hidden |= {"w000/t2", "w048/t2", "w000/gad", "w048/gad"}
    kept = SpatialInputs(
        {name: volume for name, volume in inputs.channels.items() if name not in hidden},
        inputs.spacing,
        inputs.parcellation if pattern.parcellation else None,
    )
    return kept if pattern_of(kept) == pattern else None


def covers(pattern: Pattern, other: Pattern) -> bool:
    """Return whether inputs of `pattern` can be reduced to those of `other`."""
    histories = {
        LesionHistory.COMPLETE: set(LesionHistory),
        LesionHistory.BASELINE: {LesionHistory.BASELINE, LesionHistory.NONE},
        LesionHistory.NEW: {LesionHistory.NEW, LesionHistory.NONE},
        LesionHistory.NONE: {LesionHistory.NONE},
    }
    return (
        pattern.parcellation >= other.parcellation
        and pattern.flair >= other.flair
        and other.history in histories[pattern.history]
    )
