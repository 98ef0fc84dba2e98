"""Encode a case's images and masks as channels: the condition c_f and the target x of a model.

Axes are (s, h, w): axial slices from inferior to superior, then rows and columns in RAS+ order.
FLAIR lies in [-1, 1]. Masks become -1 / +1. A channel that a case lacks is all zeros (null).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Float32s
from storage import CaseArrays
from storage.layout import (
    BASELINE,
    CHANNELS,
    CURRENT,
    MASKS,
    OUTCOME,
    SESSIONS,
    pack_masks,
    unpack_masks_signed,
)

__all__ = [
    "CHANNELS", "MASKS", "SESSIONS", "BASELINE", "CURRENT", "OUTCOME", "TARGET_CHANNELS",
    "Channels", "Sessions",
    "PackedImages", "encode_channels", "encode_case", "parse_channels",
    "channels_outside_sessions", "sessions_of",
]  # fmt: skip

# The channels of x, in the order of the network's input. `ControlConfig.condition` names those of
# c_f.
TARGET_CHANNELS = ((OUTCOME, "flair"), (OUTCOME, "net2"))

Channels = tuple[tuple[str, str], ...]
"""(session, channel) pairs, for example (("w000", "flair"), ("w048", "net2"))."""
Sessions = tuple[str, ...]


@dataclass(frozen=True)
class PackedImages:
    """Images and masks of one case as the store and the training cache hold them."""

    #: FLAIR [session, s, h, w] in [-1, 1].
    flair: npt.NDArray[np.float16]
    #: Masks [session, kind, s, h, ceil(w / 8)], one bit a voxel, kinds as in `MASKS`.
    masks: npt.NDArray[np.uint8]
    #: True for each channel that the case has, [session, channel], channels as in `CHANNELS`.
    present: Bools
    #: Names of the sessions along the first axis of the three arrays.
    sessions: Sequence[str] = SESSIONS


def parse_channels(names: Iterable[str]) -> Channels:
    """Split names such as w000/flair into (session, channel) pairs."""
    return tuple((session, channel) for session, channel in (name.split("/") for name in names))


def sessions_of(channels: Channels) -> Sessions:
    """Return the sessions of the channels without repetition, in order of first use."""
    return tuple(dict.fromkeys(session for session, _ in channels))


def channels_outside_sessions(channels: Channels, sessions: Sequence[str]) -> Bools:
    """Return True for each channel that belongs to none of the `sessions`, [channel]."""
    return np.array([session not in sessions for session, _ in channels], bool)


def encode_channels(
    images: PackedImages,
    *,
    channels: Channels,
    out: Float32s | None = None,
    copy: Callable[[Float32s, npt.NDArray[np.float16]], Any] = np.copyto,
) -> Float32s:
    """Return the named channels of one case as floats, [channel, s, h, w]; absent ones are zero.

    The result is written into `out` if given. `copy(target, values)` converts FLAIR to floats.
    """
    encoded = np.empty((len(channels), *images.flair.shape[1:]), np.float32) if out is None else out
    for row, (session, channel) in enumerate(channels):
        k, c = images.sessions.index(session), CHANNELS.index(channel)
        if not images.present[k, c]:
            encoded[row] = 0
        elif channel == "flair":
            copy(encoded[row], images.flair[k])
        else:
            unpack_masks_signed(images.masks[k, MASKS.index(channel)], encoded[row])
    return encoded


def encode_case(arrays: CaseArrays, *, channels: Channels) -> Float32s:
    """Return the named channels of a case read from a store, [channel, s, h, w]."""
    images = PackedImages(arrays.flair, pack_masks(arrays.masks), arrays.present)
    return encode_channels(images, channels=channels)
