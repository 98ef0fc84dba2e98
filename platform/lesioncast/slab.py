"""What a model sees of a case: the condition c_f and the target x as channels of one slab.

Axes are (s, h, w): axial slices from inferior to superior, then rows and columns in RAS+ order.
FLAIR lies in [-1, 1]; masks become -1 / +1; a channel that a case lacks is all zeros (null).
"""

import numpy as np
import numpy.typing as npt

from storage.layout import CHANNELS, MASKS, SESSIONS

__all__ = ["CHANNELS", "CONDITION", "MASKS", "SESSIONS", "TARGET", "Channels", "encode"]

# c_f and x, in the order in which the network receives them (MODEL: w000 + w048 -> w096).
CONDITION = (
    ("w000", "flair"),
    ("w000", "t2"),
    ("w000", "gad"),
    ("w048", "flair"),
    ("w048", "t2"),
    ("w048", "gad"),
    ("w048", "net2"),
)
TARGET = (("w096", "flair"), ("w096", "net2"))

Channels = tuple[tuple[str, str], ...]


def encode(
    flair: npt.NDArray[np.float16],
    masks: npt.NDArray[np.uint8],
    present: npt.NDArray[np.bool_],
    *,
    channels: Channels,
) -> npt.NDArray[np.float32]:
    """The named channels of one case as floats, absent ones zero.

    `flair` [session, s, h, w] in [-1, 1]; `masks` [session, kind, s, h, w] in {0, 1}, kinds as in
    `MASKS`; `present` [session, channel], channels as in `CHANNELS`. Returns [channel, s, h, w].
    """
    encoded = np.zeros((len(channels), *flair.shape[1:]), np.float32)
    for row, (session, channel) in enumerate(channels):
        k, c = SESSIONS.index(session), CHANNELS.index(channel)
        if not present[k, c]:
            continue
        if channel == "flair":
            encoded[row] = flair[k]
        else:
            encoded[row] = np.where(masks[k, MASKS.index(channel)], np.float32(1), np.float32(-1))
    return encoded
