"""Assign subjects to the splits train, val and test."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from storage.store.case_table import Split

_NAMES: tuple[Split, Split, Split] = ("train", "val", "test")


def assign_splits(
    arms: Mapping[str, str | None],
    shares: tuple[float, float, float],
    *,
    seed: int,
    existing_splits: Mapping[str, Split] | None = None,
    groups: Sequence[Sequence[str]] = (),
) -> dict[str, Split]:
    """Return a split for each subject, stratified by arm.

    `arms` holds the arm of each subject; None gives the split `unlabelled`. Subjects in
    `existing_splits` keep their split, because a model that was trained on a subject must not be
    tested on it later. Within an arm the other subjects are ordered by a hash of `seed` and their
    name. They fill what each split lacks of its share of the arm, rounded by largest remainder.

    `groups` are subjects who share images. Those of a group with an arm get one split, that of the
    first of them; it is train if one of them was in train.
    """
    existing_splits = {} if existing_splits is None else dict(existing_splits)
    followers = dict(_followers(arms, groups))
    for subject, leader in followers.items():
        used = {existing_splits.pop(name, None) for name in (leader, subject)}
        if split := next((name for name in _NAMES if name in used), None):
            existing_splits[leader] = split
    leaders = {subject: arm for subject, arm in arms.items() if subject not in followers}
    splits = _assign_by_arm(leaders, shares, seed=seed, existing_splits=existing_splits)
    return splits | {subject: splits[leader] for subject, leader in followers.items()}


def _followers(
    arms: Mapping[str, str | None], groups: Sequence[Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Yield each subject who takes the split of another one, and that subject."""
    for group in groups:
        leader, *others = [name for name in sorted(group) if arms.get(name) is not None] or [""]
        yield from ((name, leader) for name in others)


def _assign_by_arm(
    arms: Mapping[str, str | None],
    shares: tuple[float, float, float],
    *,
    seed: int,
    existing_splits: Mapping[str, Split],
) -> dict[str, Split]:
    """Return a split for each subject by itself."""
    splits: dict[str, Split] = {
        subject: "unlabelled" for subject, arm in arms.items() if arm is None
    }
    for arm in sorted({arm for arm in arms.values() if arm is not None}):
        members = [subject for subject in arms if arms[subject] == arm]
        unchanged = {
            subject: existing_splits[subject] for subject in members if subject in existing_splits
        }
        new = sorted(set(members) - unchanged.keys(), key=lambda subject: _rank(subject, seed))
        counts = Counter(unchanged.values())
        open_places = [
            name
            for name, size in zip(_NAMES, _apportion(len(members), shares), strict=True)
            for _ in range(size - counts[name])
        ]
        # Not strict: if subjects left the trial, there are more open places than new subjects.
        splits |= unchanged | dict(zip(new, open_places, strict=False))
    return splits


def _rank(subject: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {subject}".encode()).digest()


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Return whole numbers that sum to `total`, by largest remainder.

    Ties go to the earlier share.
    """
    exact = [total * share for share in shares]
    sizes = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: total - sum(sizes)]:
        sizes[i] += 1
    return sizes
