"""What a person should see of each case before a model does, measured on the store itself.

Everything here is read off the slab as it is stored, so a wrong crop, a flipped mask or a swapped
session shows as training would meet it. A flag is a reason to look, never a verdict.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from storage.layout import BACKGROUND, CHANNELS, MASKS, SESSIONS
from storage.preprocess.grid import SlabGrid
from storage.preprocess.prepare import CaseArrays
from storage.qc.thumbnail import thumbnail
from storage.store.case_table import Case
from storage.store.store import Store

# From where on a person should look.
LEAST_FIELD = 0.7  # of the slab, inside the source's field; 220 mm of 256 mm fill 0.74 in plane
LEAST_HEAD = 0.12  # of the slab, in the head
MOST_ASYMMETRY = 0.15  # |right - left| / (right + left), in voxels of the head
MAX_CLIPPED_SHARE = 0.02  # of the head's voxels; half a percent of the volume is clipped on purpose
LEAST_LIKENESS = 0.5  # correlation of two sessions of one head
MOST_OUTSIDE = 0.05  # of a mask, outside the head
LEAST_IN_T2 = 0.5  # of NET2, inside the T2 mask of its session
MIN_T2_RETAINED = 0.5  # of the T2 volume, at the next session

_TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner are one lesion

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LesionStats:
    """What one mask holds: millilitres, and groups of voxels that touch."""

    ml: float
    count: int


@dataclass(frozen=True)
class CaseQuality:
    """One line of the table. Shares are of the slab; `intensity` and `lesions` know what is there.

    `in_head` and `asymmetry` (right against left) are of the w048 FLAIR. `clipped` is the share of
    a session's head at the highest value. `lesions` are by (session, kind of mask). `orientation`,
    `spacing` and `shape` (i, j, k) are the source's own.
    """

    subject: str
    split: str
    arm: str | None
    orientation: str
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    in_field: float
    in_head: float
    asymmetry: float
    intensity: dict[str, tuple[float, float]]
    clipped: dict[str, float]
    lesions: dict[tuple[str, str], LesionStats]
    flags: tuple[str, ...]
    picture: bytes


def measure_case(store: Store, index: int) -> CaseQuality:
    """Measure the case with that index, and draw the middle of its slab."""
    case, arrays = store.cases[index], store.read(index)
    affine = np.array(case.grid.header.affine)
    heads = {
        session: arrays.flair[k] > BACKGROUND
        for k, session in enumerate(SESSIONS)
        if case.present[k, CHANNELS.index("flair")]
    }
    w048 = heads["w048"]
    right, left = (int(half.sum()) for half in _halves(w048))
    lesions = _lesions(case, arrays, spacing=store.spec.spacing)
    measured = {
        "in_field": field_share(case.grid),
        "in_head": float(w048.mean()),
        "asymmetry": (right - left) / max(1, right + left),
    }
    clipped = {
        session: float((arrays.flair[SESSIONS.index(session)][head] == 1).mean())
        for session, head in heads.items()
    }
    flags = (
        *_flags_of_the_slab(**measured),
        *(f"{s}: intensity clipped" for s, share in clipped.items() if share > MAX_CLIPPED_SHARE),
        *_flag_session_correlation(arrays, heads),
        *_flags_of_masks(case, arrays, heads),
        *_flag_t2_decrease(lesions),
    )
    return CaseQuality(
        subject=case.subject,
        split=case.split,
        arm=case.arm,
        orientation="".join(nib.aff2axcodes(affine)),
        spacing=tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)),
        shape=case.grid.header.shape,
        **measured,
        intensity=dict(case.intensity),
        clipped=clipped,
        lesions=lesions,
        flags=flags,
        picture=thumbnail(arrays),
    )


def field_share(grid: SlabGrid) -> float:
    """The share of a slab that lies inside its source's field of view."""
    share = 1.0
    for size, source, scale, offset in zip(
        grid.slab, grid.shape, grid.scale, grid.offset, strict=True
    ):
        places = offset + scale * np.arange(size)
        share *= float(((places >= -0.5) & (places < source - 0.5)).mean())
    return share


def _halves(head: Mask) -> tuple[Mask, Mask]:
    """Right and left of the slab's middle; an odd column in the middle is of neither."""
    half = head.shape[-1] // 2
    return head[..., -half:], head[..., :half]


def _lesions(
    case: Case, arrays: CaseArrays, *, spacing: tuple[float, float, float]
) -> dict[tuple[str, str], LesionStats]:
    ml = float(np.prod(spacing)) / 1000
    found = {}
    for k, m in np.argwhere(case.present[:, 1:]):
        mask = arrays.masks[k, m]
        _, count = ndimage.label(mask, _TOUCHING)
        found[SESSIONS[k], MASKS[m]] = LesionStats(int(mask.sum()) * ml, int(count))
    return found


def _flags_of_the_slab(*, in_field: float, in_head: float, asymmetry: float) -> Iterator[str]:
    if in_field < LEAST_FIELD:
        yield f"field covers {in_field:.0%} of the slab"
    if in_head < LEAST_HEAD:
        yield f"head fills {in_head:.0%} of the slab"
    if abs(asymmetry) > MOST_ASYMMETRY:
        side = "right" if asymmetry > 0 else "left"
        yield f"more head on the {side} ({abs(asymmetry):.0%})"


def _flag_session_correlation(arrays: CaseArrays, heads: dict[str, Mask]) -> Iterator[str]:
    """Two sessions of one head look alike once they are registered to each other."""
    for one, other in combinations(heads, 2):
        both = heads[one] | heads[other]
        a, b = (arrays.flair[SESSIONS.index(s)][both].astype(np.float32) for s in (one, other))
        like = float(np.corrcoef(a, b)[0, 1]) if a.size and a.std() and b.std() else 0.0
        if like < LEAST_LIKENESS:
            yield f"{one} and {other} look unlike (r = {like:.2f})"


def _flags_of_masks(case: Case, arrays: CaseArrays, heads: dict[str, Mask]) -> Iterator[str]:
    for k, m in np.argwhere(case.present[:, 1:]):
        session, kind, mask = SESSIONS[k], MASKS[m], arrays.masks[k, m] != 0
        name = f"{session}: {kind.upper() if kind != 'gad' else 'Gad'}"
        if not mask.any():
            if kind == "t2":
                yield f"{name} mask empty"
            continue
        if session in heads and _share(mask, ~heads[session]) > MOST_OUTSIDE:
            yield f"{name} {_share(mask, ~heads[session]):.0%} outside the head"
        t2 = arrays.masks[k, MASKS.index("t2")] != 0
        if kind == "net2" and t2.any() and _share(mask, t2) < LEAST_IN_T2:
            yield f"{name} {_share(mask, t2):.0%} inside T2"
    labels = arrays.parcellation != 0
    if case.parcellation and _share(labels, ~heads["w048"]) > MIN_T2_RETAINED:
        yield "parcellation off the head"


def _share(part: Mask, whole: Mask) -> float:
    return float((part & whole).sum() / max(1, part.sum()))


def _flag_t2_decrease(lesions: dict[tuple[str, str], LesionStats]) -> Iterator[str]:
    t2 = [(s, lesions[s, "t2"].ml) for s in SESSIONS if (s, "t2") in lesions]
    for (one, before), (other, after) in pairwise(t2):
        if after < before * MIN_T2_RETAINED:
            yield f"T2 falls from {before:.1f} ml at {one} to {after:.1f} ml at {other}"


def sort_key(found: CaseQuality) -> tuple[Any, ...]:
    """Most flags first, then by name."""
    return -len(found.flags), found.subject
