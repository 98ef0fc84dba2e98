"""Quality control of the cases of a store: measurements and flags for a human reader.

Everything is measured on the slab as it is stored, so a wrong crop, a flipped mask or a swapped
session appears as it would in training. A flag is a reason to look at a case, not a verdict.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from storage.layout import (
    CHANNELS,
    CONNECTIVITY_26,
    CURRENT,
    MASKS,
    SESSIONS,
    VisitSchedule,
    head_mask,
)
from storage.preprocess.grid import SlabGrid
from storage.preprocess.lesions import LesionTransfer
from storage.preprocess.prepare import CaseArrays
from storage.preprocess.visits import Intervals
from storage.store.case_table import Case
from storage.store.store import Store

# Thresholds of the flags.
# Share of the slab inside the source's field of view; 220 mm of 256 mm in plane fill 0.74 of it.
MIN_FIELD_SHARE = 0.7
# Share of the slab inside the head. A head leaves the corners of its slices free; if it fills them,
# air counts as tissue.
MIN_HEAD_SHARE = 0.12
MAX_HEAD_SHARE = 0.95
# Size of the head at one session relative to the current one, or the reverse: 0.7 without a skull.
MIN_HEAD_AGREEMENT = 0.85
# |right - left| / (right + left), in voxels of the head.
MAX_ASYMMETRY = 0.15
# Share of the head's voxels at the highest value; half a percent of the volume is clipped anyway.
MAX_CLIPPED_SHARE = 0.02
# Pearson correlation of the FLAIR of two sessions.
MIN_SESSION_CORRELATION = 0.5
# Root mean square difference of the FLAIR of two sessions in [-1, 1]: two scans differ by more.
MIN_SESSION_DIFFERENCE = 0.02
# Voxels from which equal lesion masks are no coincidence.
MIN_EQUAL_VOXELS = 8
# Share of a lesion mask outside the head.
MAX_SHARE_OUTSIDE_HEAD = 0.05
# Share of a mask's lesions that are not on the slab.
MAX_LOST_SHARE = 0.5
# Share of the parcellation outside the head.
MAX_LABELS_OUTSIDE_HEAD = 0.5
# Share of the NET2 mask inside the T2 mask of its session.
MIN_NET2_SHARE_IN_T2 = 0.5
# Share of the T2 volume that remains at the next session.
MIN_T2_RETAINED = 0.5

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LesionStats:
    """Volume in ml and number of connected lesions of one mask."""

    ml: float
    count: int


@dataclass(frozen=True)
class CaseQuality:
    """Measurements of one case: a row of the quality-control table."""

    subject: str
    split: str
    arm: str | None
    #: Axis codes of the source file.
    orientation: str
    #: Voxel sizes of the source file in mm (i, j, k).
    spacing: tuple[float, ...]
    #: Shape of the source file (i, j, k).
    shape: tuple[int, ...]
    #: Share of the slab inside the source's field of view.
    in_field: float
    #: Share of the slab inside the head, at the current session.
    in_head: float
    #: The same by session.
    head: dict[str, float]
    #: (right - left) / (right + left), in voxels of the head at the current session.
    asymmetry: float
    #: Days between its sessions.
    intervals: Intervals
    #: Raw FLAIR values that became -1 and 1, by session.
    intensity: dict[str, tuple[float, float]]
    #: Share of the head's voxels at the highest value, by session.
    clipped: dict[str, float]
    #: By session and kind of mask, for masks that the case has.
    lesions: dict[tuple[str, str], LesionStats]
    #: The lesions of the source and those that are not on the slab, by session and kind of mask.
    transfers: dict[tuple[str, str], LesionTransfer]
    #: Reasons to look at the case.
    flags: tuple[str, ...]


def measure_case(store: Store, index: int, arrays: CaseArrays) -> CaseQuality:
    """Measure the case with that index, whose arrays are given."""
    case, visits = store.cases[index], store.spec.visits
    affine = np.array(case.grid.header.affine)
    heads = {
        session: head_mask(arrays.flair[k])
        for k, session in enumerate(SESSIONS)
        if case.present[k, CHANNELS.index("flair")]
    }
    current = heads[CURRENT]
    right, left = (int(half.sum()) for half in _halves(current))
    lesions = _lesions(case, arrays, spacing=store.spec.spacing)
    transfers = {
        (session, kind): case.lesions[f"{session}/{kind}"]
        for session, kind in lesions
        if f"{session}/{kind}" in case.lesions
    }
    measured = {
        "in_field": field_share(case.grid),
        "in_head": float(current.mean()),
        "asymmetry": (right - left) / max(1, right + left),
    }
    head = {session: float(mask.mean()) for session, mask in heads.items()}
    clipped = {
        session: float((arrays.flair[SESSIONS.index(session)][mask] == 1).mean())
        for session, mask in heads.items()
    }
    flags = (
        *_flag_slab(**measured),
        *_flag_heads(head, visits),
        *(
            f"{visits.label(session)}: intensity clipped"
            for session, share in clipped.items()
            if share > MAX_CLIPPED_SHARE
        ),
        *_flag_session_correlation(arrays, heads, visits),
        *_flag_masks(case, arrays, heads, visits),
        *_flag_equal_masks(arrays, visits),
        *_flag_t2_decrease(lesions, visits),
        *_flag_lost_lesions(transfers, visits),
        *case.notes,
    )
    return CaseQuality(
        subject=case.subject,
        split=case.split,
        arm=case.arm,
        orientation="".join(nib.aff2axcodes(affine)),
        spacing=tuple(float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)),
        shape=case.grid.header.shape,
        **measured,
        head=head,
        intervals=case.intervals,
        intensity=dict(case.intensity),
        clipped=clipped,
        lesions=lesions,
        transfers=transfers,
        flags=flags,
    )


def field_share(grid: SlabGrid) -> float:
    """Return the share of a slab that lies inside the source's field of view."""
    share = 1.0
    for size, source, scale, offset in zip(
        grid.slab, grid.shape, grid.scale, grid.offset, strict=True
    ):
        positions = offset + scale * np.arange(size)
        share *= float(((positions >= -0.5) & (positions < source - 0.5)).mean())
    return share


def _halves(head: Mask) -> tuple[Mask, Mask]:
    """Return the right and left half of the slab, without the middle column if w is odd."""
    half = head.shape[-1] // 2
    return head[..., -half:], head[..., :half]


def _lesions(
    case: Case, arrays: CaseArrays, *, spacing: tuple[float, float, float]
) -> dict[tuple[str, str], LesionStats]:
    ml = float(np.prod(spacing)) / 1000
    stats = {}
    for k, m in np.argwhere(case.present[:, 1:]):
        mask = arrays.masks[k, m]
        stats[SESSIONS[k], MASKS[m]] = LesionStats(int(mask.sum()) * ml, _lesion_count(mask))
    return stats


def _lesion_count(mask: npt.NDArray[np.uint8]) -> int:
    """Return the number of connected lesions of a mask in 0 and 1."""
    # Looked for in their bounding box alone, because most of a slab is free of lesions.
    return sum(
        int(ndimage.label(mask[box], CONNECTIVITY_26)[1]) for box in ndimage.find_objects(mask)
    )


def _flag_slab(*, in_field: float, in_head: float, asymmetry: float) -> Iterator[str]:
    if in_field < MIN_FIELD_SHARE:
        yield f"field covers {in_field:.0%} of the slab"
    if in_head < MIN_HEAD_SHARE:
        yield f"head fills {in_head:.0%} of the slab"
    if abs(asymmetry) > MAX_ASYMMETRY:
        side = "right" if asymmetry > 0 else "left"
        yield f"more head on the {side} ({abs(asymmetry):.0%})"


def _flag_heads(head: dict[str, float], visits: VisitSchedule) -> Iterator[str]:
    """Flag a head that fills the slab, and one whose size differs from the current session's.

    Both happen if the air was taken for tissue, and the latter if one session lost its skull.
    """
    for session, share in head.items():
        if share > MAX_HEAD_SHARE:
            yield f"{visits.label(session)}: head fills {share:.0%} of the slab"
        if min(share, head[CURRENT]) < MIN_HEAD_AGREEMENT * max(share, head[CURRENT]):
            current = f"{head[CURRENT]:.0%} at {visits.label(CURRENT)}"
            yield (f"head differs: {share:.0%} of the slab at {visits.label(session)}, {current}")


def _flag_session_correlation(
    arrays: CaseArrays, heads: dict[str, Mask], visits: VisitSchedule
) -> Iterator[str]:
    """Flag two sessions that differ although registered images of one head should not.

    Flag also two sessions that are so similar that one is probably a copy of the other.
    """
    for one, other in combinations(heads, 2):
        both = heads[one] | heads[other]
        a, b = (arrays.flair[SESSIONS.index(s)][both].astype(np.float32) for s in (one, other))
        correlation = float(np.corrcoef(a, b)[0, 1]) if a.size and a.std() and b.std() else 0.0
        names = f"{visits.label(one)} and {visits.label(other)}"
        if correlation < MIN_SESSION_CORRELATION:
            yield f"{names} look unlike (r = {correlation:.2f})"
        elif np.sqrt(np.mean((a - b) ** 2)) < MIN_SESSION_DIFFERENCE:
            yield f"{names} are almost the same image"


def _flag_masks(
    case: Case, arrays: CaseArrays, heads: dict[str, Mask], visits: VisitSchedule
) -> Iterator[str]:
    for k, m in np.argwhere(case.present[:, 1:]):
        session, kind, mask = SESSIONS[k], MASKS[m], arrays.masks[k, m] != 0
        name = f"{visits.label(session)}: {kind.upper() if kind != 'gad' else 'Gad'}"
        if not mask.any():
            if kind == "t2":
                yield f"{name} mask empty"
            continue
        if session in heads and _share(mask, ~heads[session]) > MAX_SHARE_OUTSIDE_HEAD:
            yield f"{name} {_share(mask, ~heads[session]):.0%} outside the head"
        t2 = arrays.masks[k, MASKS.index("t2")] != 0
        if kind == "net2" and t2.any() and _share(mask, t2) < MIN_NET2_SHARE_IN_T2:
            yield f"{name} {_share(mask, t2):.0%} inside T2"
    labels = arrays.parcellation != 0
    if case.parcellation and _share(labels, ~heads[CURRENT]) > MAX_LABELS_OUTSIDE_HEAD:
        yield "parcellation off the head"


def _flag_equal_masks(arrays: CaseArrays, visits: VisitSchedule) -> Iterator[str]:
    """Flag equal masks in two roles, unless the roles may agree.

    T2 lesions may stay the same while there are no new ones. All T2 lesions may be new, or enhance,
    if there were none before.
    """
    t2, _, net2 = (MASKS.index(kind) for kind in ("t2", "gad", "net2"))
    names = [(k, m) for k in range(len(SESSIONS)) for m in range(len(MASKS))]
    for (k, m), (later, n) in combinations(names, 2):
        mask = arrays.masks[k, m]
        if mask.sum() < MIN_EQUAL_VOXELS or not np.array_equal(mask, arrays.masks[later, n]):
            continue
        same_kind = m == n and (m != t2 or arrays.masks[k + 1 : later + 1, net2].any())
        had_lesions = m != n and k == later and m == t2 and k > 0 and arrays.masks[k - 1, t2].any()
        if same_kind or had_lesions:
            mask_name, other = (
                _mask_name(visits.labels[at], kind) for at, kind in ((k, m), (later, n))
            )
            yield f"{mask_name} and {other} are the same mask"


def _mask_name(label: str, kind: int) -> str:
    name = MASKS[kind]
    return f"{label} {'Gad' if name == 'gad' else name.upper()}"


def _share(part: Mask, whole: Mask) -> float:
    return float((part & whole).sum() / max(1, part.sum()))


def _flag_t2_decrease(
    lesions: dict[tuple[str, str], LesionStats], visits: VisitSchedule
) -> Iterator[str]:
    t2 = [(visits.label(s), lesions[s, "t2"].ml) for s in SESSIONS if (s, "t2") in lesions]
    for (one, before), (other, after) in pairwise(t2):
        if after < before * MIN_T2_RETAINED:
            yield f"T2 falls from {before:.1f} ml at {one} to {after:.1f} ml at {other}"


def _flag_lost_lesions(
    transfers: dict[tuple[str, str], LesionTransfer], visits: VisitSchedule
) -> Iterator[str]:
    for (session, kind), transfer in transfers.items():
        if transfer.lost_count > MAX_LOST_SHARE * transfer.source_count:
            name = kind.upper() if kind != "gad" else "Gad"
            lost = f"{transfer.lost_count} of {transfer.source_count} lesions lost"
            yield f"{visits.label(session)}: {name} {lost} ({transfer.causes})"


def sort_key(case: CaseQuality) -> tuple[Any, ...]:
    """Sort cases with most flags first, then by subject."""
    return -len(case.flags), case.subject
