"""Recognise the label maps whose ids this project knows, and merge their cortical parcels.

Known are FreeSurfer's aseg, aparc+aseg and aparc.a2009s+aseg, and SynthSeg with and without --parc.
They share the ids of FreeSurfer's colour table. Other atlases use the same numbers for other
regions, so a map is accepted only if its ids fit.
"""

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int16]

KNOWN_SCHEMES = "aseg, aparc+aseg, a2009s+aseg or SynthSeg"
# Ids (left, right) of cerebral white matter and cortex.
_WHITE_MATTER, _CORTEX = (2, 41), (3, 42)
# Ids of cortical parcels (left, right), without end: of aparc and SynthSeg, and of a2009s.
_PARCELS = ((range(1001, 1036), range(2001, 2036)), (range(11101, 11176), range(12101, 12176)))
# Parcels that the atlases leave unknown.
_UNKNOWN_PARCELS = (1000, 2000, 11100, 12100)
# Ids of aseg, SynthSeg and SAMSEG other than those above, with older and rare ones.
_OTHER_STRUCTURES = (
    *range(1, 6), *range(7, 19), 24, 26, 28, *range(29, 32), 41, 42, 43, 44, *range(46, 55), 57, 58,
    *range(60, 64), 72, *range(77, 86), 99, 165, 192, *range(251, 261),
)  # fmt: skip
# Largest share of ids that no known scheme has.
_MAX_UNKNOWN_SHARE = 0.25
# An id stands for a voxel of one of these many values.
_INT16_VALUES = 2**16


def describe_unknown_scheme(labels: Labels) -> str | None:
    """Return what a label map seems to be if it is of no known scheme, and None otherwise.

    A known scheme has white matter and cortex on both sides, and few ids of other schemes.
    """
    ids = _distinct_ids(labels)
    structures = np.isin(ids, _known_ids())
    unknown = int(ids.size - structures.sum())
    if unknown > _MAX_UNKNOWN_SHARE * ids.size:
        return f"{unknown} of {ids.size} ids that these lack, such as {ids[~structures][0]}"
    missing = [
        f"{side} {tissue}"
        for tissue, by_side in (("white matter", _white_matter()), ("cortex", _cortex()))
        for side, expected in zip(("left", "right"), by_side, strict=True)
        if not np.isin(ids, expected).any()
    ]
    if not missing:
        return None
    return f"{_name_ids(ids)} without {', '.join(missing)}"


def merge_cortical_parcels(labels: Labels) -> Labels:
    """Return a label map with the cortical parcels of each side merged into 3 and 42."""
    merged = labels.copy()
    for parcels in _PARCELS:
        for parcel_ids, cortex in zip(parcels, _CORTEX, strict=True):
            merged[(labels >= parcel_ids.start) & (labels < parcel_ids.stop)] = cortex
    return merged


def _distinct_ids(labels: Labels) -> npt.NDArray[np.int64]:
    """Return the ids of a map in order, without 0. A table is faster than sorting the voxels."""
    seen = np.zeros(_INT16_VALUES, bool)
    seen[np.ascontiguousarray(labels).view(np.uint16)] = True
    ids = np.flatnonzero(seen).astype(np.uint16).view(np.int16).astype(np.int64)
    return np.sort(ids[ids != 0])


def _white_matter() -> tuple[tuple[int, ...], tuple[int, ...]]:
    left, right = _WHITE_MATTER
    return (left,), (right,)


def _cortex() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the left and of the right cortex with its parcels."""
    left, right = (
        (whole, *(id_ for parcels in _PARCELS for id_ in parcels[side]))
        for side, whole in enumerate(_CORTEX)
    )
    return left, right


def _known_ids() -> tuple[int, ...]:
    left, right = _cortex()
    return (*_OTHER_STRUCTURES, *_UNKNOWN_PARCELS, *left, *right)


def _name_ids(ids: npt.NDArray[np.int64]) -> str:
    """Describe the ids of a map in a few words."""
    if ids.tolist() == [1]:
        return "a brain mask"
    if ids.max() <= 10 and ids.min() > 0:
        return f"ids up to {ids.max()}, as of tissue classes,"
    shown = ", ".join(map(str, ids[:4]))
    return f"the ids {shown}{', ...' if ids.size > 4 else ''}"
