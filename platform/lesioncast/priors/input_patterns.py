"""Patterns of the images that a patient has: which sessions, and which kinds of mask.

A prior states the observed share of active patients for each pattern, so its mean must be right
for each. FLAIR is there nearly always; of the masks, those of gadolinium are missing most often.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BASELINE = "w000"
#: Kinds of channel, from the one that is missing least often to that which is missing most often.
KINDS = ("flair", "net2", "t2", "gad")
#: Number of patterns: no image, or one of two choices of sessions with one of the kinds at most.
PATTERNS = 1 + 2 * len(KINDS)
NO_IMAGE = 0
#: What a patient has whose last kind is that of `KINDS`.
_KIND_NAMES = ("FLAIR alone", "no T2 lesions, no gadolinium", "no gadolinium", "all kinds of image")


def pattern_number(*, later: bool, kind: str) -> int:
    """Return the pattern of a patient whose last kind, in the order of `KINDS`, is `kind`.

    `later` says whether images after baseline are there.
    """
    return 1 + len(KINDS) * later + KINDS.index(kind)


def pattern_name(pattern: int) -> str:
    """Return a pattern in words, such as "w000: no gadolinium"."""
    if pattern == NO_IMAGE:
        return "no image"
    later, kind = divmod(pattern - 1, len(KINDS))
    return f"{'w000 and w048' if later else BASELINE}: {_KIND_NAMES[kind]}"


def patterns_of(present: Tensor, channels: Sequence[str]) -> Tensor:
    """Return the pattern of each row of `present`, bool [b, channel], [b].

    `channels` are names such as w000/flair.
    """
    later = torch.tensor([not _at_baseline(name) for name in channels], device=present.device)
    kinds = torch.tensor([_kind(name) for name in channels], device=present.device)
    number = 1 + len(KINDS) * (present & later).any(1) + (present * kinds).amax(1)
    return torch.where(present.any(1), number, NO_IMAGE)


def channels_of_pattern(pattern: int, channels: Sequence[str]) -> list[bool]:
    """Return which `channels` a patient of a pattern may have, [channel]."""
    if pattern == NO_IMAGE:
        return [False] * len(channels)
    later, kind = divmod(pattern - 1, len(KINDS))
    return [(bool(later) or _at_baseline(name)) and _kind(name) <= kind for name in channels]


def _at_baseline(channel: str) -> bool:
    return channel.split("/")[0] == BASELINE


def _kind(channel: str) -> int:
    return KINDS.index(channel.split("/")[1])
