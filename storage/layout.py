"""Layout of a store: names of files and arrays, and the packing of masks. Needs numpy only.

A store is a Zarr 3 group of shards. `shards/<name>` is a group with the arrays of some cases. Each
array has a leading `case` axis and lies in one file. A shard is named by the digest of its inputs
and never changes. Its record `shards/<name>.json` is written after it and says what it holds.

The case table (`cases.json`) is written last and says which shards are current. It makes the files
a store; a new table replaces the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

SCHEMA = 4
ROOT_ATTRIBUTE = "lesioncast"
ROOT_METADATA = "zarr.json"
CASE_TABLE = "cases.json"
EXCLUDED_TABLE = "excluded.tsv"
DIGEST_CACHE = "digest_cache.json"
SHARDS = "shards"

# Roles of the sessions in every store; `TrialLayout.sessions` maps a trial's own labels to them. A
# forecast is conditioned on the baseline and the current session; the outcome is what it predicts.
SESSIONS = ("w000", "w048", "w096")
BASELINE, CURRENT, OUTCOME = SESSIONS
NOMINAL_DAYS = (0, 336, 672)
CHANNELS = ("flair", "t2", "gad", "net2")
MASKS = CHANNELS[1:]

ARRAYS = ("flair", "masks", "parcellation", "present")

BACKGROUND = -1.0  # FLAIR outside the head and outside the source's field of view

# Neighbourhood of a voxel in a lesion: 26 neighbours, so voxels that share a corner are one lesion.
CONNECTIVITY_26 = np.ones((3, 3, 3), bool)

Array: TypeAlias = npt.NDArray[Any]
CovariateValue: TypeAlias = str | int | float | None  # one cell of the table of participants


@dataclass(frozen=True)
class VisitSchedule:
    """A trial's own labels and nominal days of baseline, current session and outcome."""

    #: Label of each session, as people and files call it.
    labels: tuple[str, str, str] = SESSIONS
    #: Day on which each session is planned, counted from baseline.
    days: tuple[int, int, int] = NOMINAL_DAYS

    def label(self, session: str) -> str:
        """Return the trial's own label of a session, such as m12 for w048."""
        return self.labels[SESSIONS.index(session)]

    def describe(self, session: str) -> str:
        """Return label and planned day of a session, such as "m12 (day 336)"."""
        return f"{self.label(session)} (day {self.days[SESSIONS.index(session)]})"


@dataclass(frozen=True)
class StoreSpec:
    """Properties shared by all cases: arms in order, slab (s, h, w) and its spacing in mm."""

    arms: tuple[str, ...]
    slab: tuple[int, int, int]
    spacing: tuple[float, float, float]
    #: Labels and nominal days of the sessions.
    visits: VisitSchedule = VisitSchedule()


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store; `shape` is that of one case, without the leading case axis.

    `chunk` is the part of a case that is read and checked as a unit.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]

    @property
    def chunk(self) -> tuple[int, ...]:
        """Return the shape of a chunk: one session of a case for arrays with images by session."""
        by_session = self.axes[0] == "session" and self.axes[-1] == "w"
        return (1, *self.shape[1:]) if by_session else self.shape

    @property
    def bytes_per_case(self) -> int:
        """Return the uncompressed size of one case."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def array_specs(
    slab: tuple[int, int, int], sessions: Sequence[str] = SESSIONS
) -> dict[str, ArraySpec]:
    """Return the arrays of a store by name, restricted to some `sessions`.

    `masks` are packed: eight voxels a byte along w.
    """
    s, h, w = slab
    n_sessions, n_masks, n_channels = len(sessions), len(MASKS), len(CHANNELS)
    space = ("s", "h", "w")
    return {
        "flair": ArraySpec((n_sessions, s, h, w), "float16", ("session", *space)),
        "masks": ArraySpec(
            (n_sessions, n_masks, s, h, -(-w // 8)), "uint8", ("session", "kind", *space)
        ),
        "parcellation": ArraySpec((s, h, w), "int16", space),
        "present": ArraySpec((n_sessions, n_channels), "bool", ("session", "channel")),
    }


def head_mask(flair: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where stored FLAIR shows the head, or the brain if the skull was removed.

    Conversion set all that is no tissue to `BACKGROUND`. An absent session, stored as zeros, has no
    background.
    """
    return np.asarray(flair > BACKGROUND)


def session_indices(sessions: Sequence[str]) -> list[int]:
    """Return the positions of sessions along a store's session axis.

    Raises ValueError for an unknown session.
    """
    if unknown := set(sessions) - set(SESSIONS):
        raise ValueError(f"expected sessions of {', '.join(SESSIONS)}, got {sorted(unknown)}")
    return [SESSIONS.index(session) for session in sessions]


def channel_index(name: str) -> tuple[int, int]:
    """Return the position in `present` of a channel such as w096/net2.

    Raises ValueError for an unknown session or channel.
    """
    session, _, channel = name.partition("/")
    if session not in SESSIONS or channel not in CHANNELS:
        raise ValueError(
            f"expected a session of {', '.join(SESSIONS)} and a channel of {', '.join(CHANNELS)}, "
            f"such as {OUTCOME}/net2, got {name}"
        )
    return SESSIONS.index(session), CHANNELS.index(channel)


def root_attributes() -> dict[str, Any]:
    """Return the attributes of the root group, as JSON.

    `schema` comes first, so that a store of another version is reported as that.
    """
    return {
        ROOT_ATTRIBUTE: {
            "schema": SCHEMA,
            "description": "MRI slabs of an MS trial; cases.json lists the current shards.",
            "sessions": list(SESSIONS),
            "channels": list(CHANNELS),
        }
    }


def shard_attributes(spec: StoreSpec) -> dict[str, Any]:
    """Return the attributes of a shard's group, as JSON."""
    return {
        ROOT_ATTRIBUTE: {
            **root_attributes()[ROOT_ATTRIBUTE],
            "description": "Cases in the order of the record; a bit of masks is a voxel along w.",
            "slab": list(spec.slab),
            "spacing": list(spec.spacing),
        }
    }


def shard_record_path(shard: str) -> str:
    """Return the name of the file that says what a shard holds."""
    return f"{SHARDS}/{shard}.json"


def shard_paths(shard: str, slab: tuple[int, int, int]) -> list[str]:
    """Return the names of all other files of a shard that holds at least one case."""
    specs = array_specs(slab).items()
    chunks = [f"{name}/c/{'/'.join('0' * (1 + len(array.shape)))}" for name, array in specs]
    files = [ROOT_METADATA, *chunks, *(f"{name}/{ROOT_METADATA}" for name in ARRAYS)]
    return sorted(f"{SHARDS}/{shard}/{file}" for file in files)


def pack_masks(masks: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Pack binary masks [..., w] into bits [..., ceil(w / 8)], first voxel in the highest bit."""
    return np.packbits(np.asarray(masks, bool), axis=-1)


def unpack_masks(packed: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint8]:
    """Unpack bits of `pack_masks` into {0, 1} masks [..., width]."""
    return np.unpackbits(packed, axis=-1, count=width)


_SIGN_TABLE = unpack_masks(np.arange(256, dtype=np.uint8)[:, None], 8).astype(np.float32) * 2 - 1


def unpack_masks_signed(packed: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
    """Unpack bits of `pack_masks` as -1 and 1 into the contiguous array `out` [..., w].

    A table maps each byte to eight floats. It takes a third of the time of unpacking and scaling.
    """
    if out.shape[-1] % 8:
        out[...] = _SIGN_TABLE[packed].reshape(*packed.shape[:-1], -1)[..., : out.shape[-1]]
    else:
        # mode="raise" would fill a temporary copy before `out`; no index is out of range here.
        np.take(_SIGN_TABLE, packed, axis=0, out=out.reshape(*packed.shape, 8), mode="clip")
