"""Find images that stand under two subjects of a store: copies of a patient."""

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np
import numpy.typing as npt

from storage.layout import VisitSchedule

# Largest root mean square difference between the fingerprints of copies, in steps of 1/127.5.
# Scans of one patient at two times differ by more.
MAX_DIFFERENCE = 4.0
# Positions inside a head that a comparison needs.
_MIN_POSITIONS = 24
# Rows of the matrix of differences that are computed at once; more need more memory.
_BLOCK = 512


class Fingerprinted(Protocol):
    """A case, or the metadata of one."""

    @property
    def subject(self) -> str: ...
    @property
    def sources(self) -> Mapping[str, str]: ...
    @property
    def digests(self) -> Mapping[str, str]: ...
    @property
    def fingerprints(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class SubjectCopy:
    """One FLAIR under two subjects; `subject` comes before `other` in the alphabet."""

    subject: str
    session: str
    other: str
    other_session: str

    def named(self, visits: VisitSchedule) -> "SubjectCopy":
        """Return the same with the trial's own labels of the sessions."""
        return replace(
            self,
            session=visits.label(self.session),
            other_session=visits.label(self.other_session),
        )

    def __str__(self) -> str:
        return (
            f"{self.subject} at {self.session} and {self.other} at {self.other_session} "
            "are the same image"
        )


def find_copies(cases: Sequence[Fingerprinted]) -> list[SubjectCopy]:
    """Return each pair of FLAIR images of two subjects with the same file or almost equal voxels.

    A pair of subjects is listed once for each pair of sessions, in the order of their names.
    """
    names = [(case.subject, session) for case in cases for session in case.fingerprints]
    pairs = set(_equal_files(cases))
    if names:
        texts = [text for case in cases for text in case.fingerprints.values()]
        values = np.stack([np.frombuffer(b64decode(text), np.uint8) for text in texts])
        pairs |= {
            (names[one], names[other])
            for one, other in _similar_rows(values.astype(np.float32))
            if names[one][0] != names[other][0]
        }
    ordered = sorted({(min(pair), max(pair)) for pair in pairs})
    return [SubjectCopy(*one, *other) for one, other in ordered]


def _equal_files(
    cases: Sequence[Fingerprinted],
) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Yield the pairs of subject and session whose FLAIR files have the same bytes."""
    by_digest: dict[str, list[tuple[str, str]]] = {}
    for case in cases:
        for role, path in case.sources.items():
            session, _, channel = role.partition("/")
            if channel == "flair":
                by_digest.setdefault(case.digests[path], []).append((case.subject, session))
    for names in by_digest.values():
        yield from (pair for pair in combinations(names, 2) if pair[0][0] != pair[1][0])


def _similar_rows(values: npt.NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Yield the indices of rows that differ by at most `MAX_DIFFERENCE` inside both heads."""
    inside = (values > 0).astype(np.float32)
    squares, counts = (values**2).sum(axis=1), inside.sum(axis=1)
    for first in range(0, len(values), _BLOCK):
        rows = slice(first, first + _BLOCK)
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a b; sums of whole numbers below 2^24 are exact in float32.
        difference = squares[rows, None] + squares[first:] - 2 * values[rows] @ values[first:].T
        positions = counts[rows, None] + counts[first:] - inside[rows] @ inside[first:].T
        similar = (difference <= MAX_DIFFERENCE**2 * positions) & (positions >= _MIN_POSITIONS)
        for one, other in np.argwhere(np.triu(similar, 1)):
            yield first + int(one), first + int(other)


def linked_subjects(copies: Sequence[SubjectCopy]) -> list[list[str]]:
    """Return the groups of subjects that copies connect, each sorted by name."""
    groups: dict[str, set[str]] = {}
    for copy in copies:
        merged = groups.get(copy.subject, {copy.subject}) | groups.get(copy.other, {copy.other})
        groups |= dict.fromkeys(merged, merged)
    return sorted({tuple(sorted(group)): sorted(group) for group in groups.values()}.values())
