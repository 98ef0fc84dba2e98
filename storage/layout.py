"""The layout of a store: its names, its arrays and how masks are packed. Needs numpy only.

A store is a Zarr 3 group. Its attributes hold `{"lesioncast": {schema, arms, sessions, channels,
slab, spacing}}`; every array has a leading `case` axis, one chunk a case and `cases_per_shard`
cases a file. The case table beside them (`cases.json`) is written last and makes a store valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = 1
ATTRIBUTE = "lesioncast"
CASE_TABLE = "cases.json"
REFUSED_TABLE = "refused.tsv"

# Names in a store, whatever a trial calls its visits: w000 and w048 condition, w096 is forecast.
SESSIONS = ("w000", "w048", "w096")
CHANNELS = ("flair", "t2", "gad", "net2")
MASKS = CHANNELS[1:]

ARRAYS = ("flair", "masks", "parcellation", "present")

BACKGROUND = -1.0  # FLAIR outside the head, and outside the field of the source


@dataclass(frozen=True)
class StoreSpec:
    """What all cases of a store share: arm names in order, slab (s, h, w), its spacing in mm."""

    arms: tuple[str, ...]
    slab: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: `shape` is that of a case, without the leading case axis."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]

    @property
    def bytes_per_case(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def array_specs(
    slab: tuple[int, int, int], sessions: Sequence[str] = SESSIONS
) -> dict[str, ArraySpec]:
    """The arrays of a store by name, or their part of some `sessions`; `masks` are packed eight
    voxels a byte along w."""
    s, h, w = slab
    number, kinds, channels = len(sessions), len(MASKS), len(CHANNELS)
    space = ("s", "h", "w")
    return {
        "flair": ArraySpec((number, s, h, w), "float16", ("session", *space)),
        "masks": ArraySpec((number, kinds, s, h, -(-w // 8)), "uint8", ("session", "kind", *space)),
        "parcellation": ArraySpec((s, h, w), "int16", space),
        "present": ArraySpec((number, channels), "bool", ("session", "channel")),
    }


def session_indices(sessions: Sequence[str]) -> list[int]:
    """The places of sessions along a store's session axis. ValueError for one that it has not."""
    if unknown := set(sessions) - set(SESSIONS):
        raise ValueError(f"expected sessions of {', '.join(SESSIONS)}, got {sorted(unknown)}")
    return [SESSIONS.index(session) for session in sessions]


def channel_index(name: str) -> tuple[int, int]:
    """The place in `present` of a channel such as w096/net2. ValueError where there is none."""
    session, _, channel = name.partition("/")
    if session not in SESSIONS or channel not in CHANNELS:
        raise ValueError(
            f"expected a session of {', '.join(SESSIONS)} and a channel of {', '.join(CHANNELS)}, "
            f"such as w096/net2, got {name}"
        )
    return SESSIONS.index(session), CHANNELS.index(channel)


def group_attributes(spec: StoreSpec) -> dict[str, Any]:
    """The attributes of the root group, as JSON."""
    return {
        ATTRIBUTE: {
            "schema": SCHEMA,
            "arms": list(spec.arms),
            "sessions": list(SESSIONS),
            "channels": list(CHANNELS),
            "slab": list(spec.slab),
            "spacing": list(spec.spacing),
        }
    }


def pack_masks(masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Binary masks [..., w] as bits [..., ceil(w / 8)], the first voxel in the highest bit."""
    return np.packbits(np.asarray(masks, bool), axis=-1)


def unpack_masks(packed: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_masks`: {0, 1} masks [..., width]."""
    return np.unpackbits(packed, axis=-1, count=width)
