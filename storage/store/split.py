"""Who trains, validates and tests."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from storage.store.case_table import Split

_NAMES: tuple[Split, Split, Split] = ("train", "val", "test")


def assign_splits(
    arms: Mapping[str, str | None],
    shares: tuple[float, float, float],
    *,
    seed: int,
    kept: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """A split for each subject, stratified by arm; `arms` gives the arm, None for `unlabelled`.

    Those in `kept` stay where they are, for a model that was trained on a subject must not be
    tested on it later. Within an arm the others stand in an order that only `seed` and their names
    decide, and fill what each split lacks of the arm's size, shared out by largest remainder.
    """
    kept = {} if kept is None else kept
    splits: dict[str, Split] = {s: "unlabelled" for s, arm in arms.items() if arm is None}
    for arm in sorted({arm for arm in arms.values() if arm is not None}):
        members = [subject for subject in arms if arms[subject] == arm]
        settled = {subject: kept[subject] for subject in members if subject in kept}
        new = sorted(set(members) - settled.keys(), key=lambda s: _rank(s, seed))
        counts = Counter(settled.values())
        lacking = [
            name
            for name, size in zip(_NAMES, _apportion(len(members), shares), strict=True)
            for _ in range(size - counts[name])
        ]
        splits |= settled | dict(
            zip(new, lacking, strict=False)
        )  # more lack than come, if some left
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
