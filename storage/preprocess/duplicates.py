"""Detect one image in two roles: as two sessions of a subject, or as two channels.

Files are compared by their content, because a copy may have another name, compression or data type.
"""

from base64 import b64encode
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.layout import SESSIONS, head_mask
from storage.trial.dataset import SourceFile

# Two FLAIR slabs in [-1, 1] are one image if this share of the head's voxels agrees this closely.
# Rounding stays far below; the noise of two scans is far above.
_EQUAL_SHARE = 0.999
_EQUAL_DIFFERENCE = 0.004
# Positions of a fingerprint along (s, h, w), and the middle part of h and w in which they lie.
_SAMPLES = (4, 6, 6)
_MIDDLE = (1.0, 0.7, 0.7)


def check_distinct_sessions(flair: npt.NDArray[np.float16], sources: dict[str, SourceFile]) -> None:
    """Require that no FLAIR is a copy of an earlier session's; `sources` are the files by session.

    Raises CaseError that names the later session.
    """
    sessions = [session for session in SESSIONS if session in sources]
    for later, session in enumerate(sessions):
        for earlier in sessions[:later]:
            one, other = (flair[SESSIONS.index(name)] for name in (earlier, session))
            if _is_same_image(one, other):
                source, copy = sources[session], sources[earlier]
                reason = (
                    f"expected a scan of {source.visit}, got the voxels of {copy.visit} "
                    f"({copy.path.name})"
                )
                raise source.rejection(
                    "one image at two sessions", f"{reason}; put the right file there"
                )


def _is_same_image(one: npt.NDArray[np.float16], other: npt.NDArray[np.float16]) -> bool:
    """Return whether two slabs hold the same voxels, up to rounding."""
    head = head_mask(one) | head_mask(other)
    if not head.any():
        return False
    difference = np.abs(one[head].astype(np.float32) - other[head])
    return float((difference <= _EQUAL_DIFFERENCE).mean()) >= _EQUAL_SHARE


def check_distinct_channels(source: SourceFile, other: SourceFile) -> None:
    """Require that two files of one subject with the same bytes may play both roles.

    Two lesion masks of different kinds may agree, and so may the T2 lesions of two sessions. An
    image is no mask, though, and a lesion cannot be new, or enhance in the same voxels, twice.
    Raises CaseError that names `source`.
    """
    lesions = ("t2", "gad", "net2")
    both_lesions = source.channel in lesions and other.channel in lesions
    if both_lesions and (source.channel != other.channel or source.channel == "t2"):
        return
    if source.channel == other.channel == "flair":
        return  # for `check_distinct_sessions`, which compares voxels
    reason = (
        f"expected a {source.channel} file of {source.visit}, got the content of "
        f"{other.visit} {other.channel} ({other.path.name})"
    )
    raise source.rejection("one file in two roles", f"{reason}; put the right file there")


def fingerprint(flair: npt.NDArray[np.float16]) -> str:
    """Return some voxels of a normalised FLAIR slab (s, h, w), in steps of 1/127.5, as base64.

    Copies of an image have almost equal fingerprints, whatever their file format and scaling.
    """
    positions = [
        np.floor((0.5 + middle * ((np.arange(count) + 0.5) / count - 0.5)) * size).astype(int)
        for count, middle, size in zip(_SAMPLES, _MIDDLE, flair.shape, strict=True)
    ]
    values: npt.NDArray[Any] = flair[np.ix_(*positions)].astype(np.float32)
    return b64encode(np.rint((values + 1) * 127.5).astype(np.uint8).tobytes()).decode()
