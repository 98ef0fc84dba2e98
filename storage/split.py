"""Who trains, validates and tests."""

import hashlib
from collections.abc import Mapping, Sequence

from storage.cases import Split

_NAMES: tuple[Split, Split, Split] = ("train", "val", "test")


def assign_splits(
    arms: Mapping[str, str | None], shares: tuple[float, float, float], *, seed: int
) -> dict[str, Split]:
    """A split for each subject, stratified by arm; `arms` gives the arm, None for `unlabelled`.

    Within an arm subjects stand in an order that only `seed` and their names decide, and the arm's
    size is shared out by largest remainder: a trial that grows moves few of those it had.
    """
    splits: dict[str, Split] = {s: "unlabelled" for s, arm in arms.items() if arm is None}
    for arm in sorted({arm for arm in arms.values() if arm is not None}):
        members = sorted((s for s in arms if arms[s] == arm), key=lambda s: _rank(s, seed))
        parts = [
            name
            for name, size in zip(_NAMES, _apportion(len(members), shares), strict=True)
            for _ in range(size)
        ]
        splits |= dict(zip(members, parts, strict=True))
    return splits


def _rank(subject: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {subject}".encode()).digest()


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, by largest remainder; ties go to the earlier share."""
    exact = [total * share for share in shares]
    sizes = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes
