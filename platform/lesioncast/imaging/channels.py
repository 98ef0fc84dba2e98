"""What a model sees of a case: the condition c_f and the target x as channels of one slab.

Axes are (s, h, w): axial slices from inferior to superior, then rows and columns in RAS+ order.
FLAIR lies in [-1, 1]; masks become -1 / +1; a channel that a case lacks is all zeros (null).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage import CaseArrays
from storage.layout import CHANNELS, MASKS, SESSIONS, pack_masks, unpack_masks_signed

__all__ = [
    "CHANNELS", "MASKS", "SESSIONS", "BASELINE_SESSION", "TARGET_CHANNELS", "Channels", "Sessions",
    "encode_channels", "encode_case", "parse_channels", "channels_outside_sessions", "sessions_of",
]  # fmt: skip

# x, in the order in which the network receives it; c_f is the model's (`ControlConfig.condition`).
TARGET_CHANNELS = (("w096", "flair"), ("w096", "net2"))

# The session before any treatment. What a patient's later images show, an arm has had its part in.
BASELINE_SESSION = SESSIONS[0]

Channels = tuple[tuple[str, str], ...]
Sessions = tuple[str, ...]


def parse_channels(names: Iterable[str]) -> Channels:
    """(session, channel) of names such as w000/flair."""
    return tuple((session, channel) for session, channel in (name.split("/") for name in names))


def sessions_of(channels: Channels) -> Sessions:
    """The sessions among the channels, each once."""
    return tuple(dict.fromkeys(session for session, _ in channels))


def channels_outside_sessions(channels: Channels, sessions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which of the channels belong to none of the `sessions`, [channel]."""
    return np.array([session not in sessions for session, _ in channels], bool)


def encode_channels(
    flair: npt.NDArray[np.float16],
    masks: npt.NDArray[np.uint8],
    present: npt.NDArray[np.bool_],
    *,
    channels: Channels,
    sessions: Sequence[str] = SESSIONS,
    out: npt.NDArray[np.float32] | None = None,
    copy: Callable[[npt.NDArray[np.float32], npt.NDArray[np.float16]], Any] = np.copyto,
) -> npt.NDArray[np.float32]:
    """The named channels of one case as floats, absent ones zero.

    `flair` [session, s, h, w] in [-1, 1]; `masks` [session, kind, s, h, ceil(w / 8)] packed as in
    the store, kinds as in `MASKS`; `present` [session, channel], channels as in `CHANNELS`; all of
    the `sessions` named. Returns [channel, s, h, w], which is `out` where that is given.
    `copy(to, values)` is how FLAIR gets there.
    """
    encoded = np.empty((len(channels), *flair.shape[1:]), np.float32) if out is None else out
    for row, (session, channel) in enumerate(channels):
        k, c = sessions.index(session), CHANNELS.index(channel)
        if not present[k, c]:
            encoded[row] = 0
        elif channel == "flair":
            copy(encoded[row], flair[k])
        else:
            unpack_masks_signed(masks[k, MASKS.index(channel)], encoded[row])
    return encoded


def encode_case(arrays: CaseArrays, *, channels: Channels) -> npt.NDArray[np.float32]:
    """The same of a case as it is read: [channel, s, h, w]."""
    return encode_channels(
        arrays.flair, pack_masks(arrays.masks), arrays.present, channels=channels
    )
