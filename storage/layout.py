"""The layout of a store: its names, its arrays and how masks are packed. Needs numpy only.

A store is a Zarr 3 group of shards: `shards/<name>` is a group that holds the arrays of some cases,
each with a leading `case` axis and in one file, named by the digest of what they were made from and
never changed. `shards/<name>.json` beside it, written after it, says what it holds. The case table
(`cases.json`), written last, says which shards count: it makes a store, and a new one replaces it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = 2
ROOT_ATTRIBUTE = "lesioncast"
ROOT_METADATA = "zarr.json"
CASE_TABLE = "cases.json"
REFUSED_TABLE = "excluded.tsv"
DIGEST_CACHE = "digest_cache.json"
SHARDS = "shards"

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
    """One array of a store: `shape` is that of a case, without the leading case axis.

    `chunk` is the part of a case that is read and checked as one.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]

    @property
    def chunk(self) -> tuple[int, ...]:
        """One session of a case, where an array has images by session."""
        by_session = self.axes[0] == "session" and self.axes[-1] == "w"
        return (1, *self.shape[1:]) if by_session else self.shape

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


def root_attributes() -> dict[str, Any]:
    """The attributes of the root group, as JSON."""
    return {
        ROOT_ATTRIBUTE: {
            "schema": SCHEMA,
            "description": "Slabs of MRI of an MS trial: cases.json says which shards count.",
            "sessions": list(SESSIONS),
            "channels": list(CHANNELS),
        }
    }


def shard_attributes(spec: StoreSpec) -> dict[str, Any]:
    """The attributes of a shard's group, as JSON."""
    return {
        ROOT_ATTRIBUTE: {
            **root_attributes()[ROOT_ATTRIBUTE],
            "description": "Cases in the order of its record; a bit of masks is a voxel along w.",
            "slab": list(spec.slab),
            "spacing": list(spec.spacing),
        }
    }


def shard_record_path(shard: str) -> str:
    """The file of a store that says what a shard holds."""
    return f"{SHARDS}/{shard}.json"


def shard_paths(shard: str, slab: tuple[int, int, int]) -> list[str]:
    """All other files of a shard that holds cases."""
    specs = array_specs(slab).items()
    chunks = [f"{name}/c/{'/'.join('0' * (1 + len(array.shape)))}" for name, array in specs]
    files = [ROOT_METADATA, *chunks, *(f"{name}/{ROOT_METADATA}" for name in ARRAYS)]
    return sorted(f"{SHARDS}/{shard}/{file}" for file in files)


def pack_masks(masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Binary masks [..., w] as bits [..., ceil(w / 8)], the first voxel in the highest bit."""
    return np.packbits(np.asarray(masks, bool), axis=-1)


def unpack_masks(packed: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_masks`: {0, 1} masks [..., width]."""
    return np.unpackbits(packed, axis=-1, count=width)


_SIGN_TABLE = unpack_masks(np.arange(256, dtype=np.uint8)[:, None], 8).astype(np.float32) * 2 - 1


def unpack_masks_signed(packed: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
    """Masks that `pack_masks` packed as -1 / +1 into `out` [..., w], which is contiguous.

    A table from bytes to eight floats: a third of the time of unpacking and arithmetic.
    """
    if out.shape[-1] % 8:
        out[...] = _SIGN_TABLE[packed].reshape(*packed.shape[:-1], -1)[..., : out.shape[-1]]
    else:  # "clip" because "raise" would fill a copy first
        np.take(_SIGN_TABLE, packed, axis=0, out=out.reshape(*packed.shape, 8), mode="clip")


CovariateValue = str | int | float | None
