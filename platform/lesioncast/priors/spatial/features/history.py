"""Features of older lesions: distance to them, their size and activity, and their density."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Bools, Float32s, Mask, Spacing
from lesioncast.imaging.lesions import components
from lesioncast.priors.spatial.features.curves import hats, join
from lesioncast.priors.spatial.features.regions import preferred_sides, regional_excess
from lesioncast.priors.spatial.inputs import Places, SpatialInputs
from lesioncast.priors.spatial.smoothing import smooth

DISTANCE_KNOTS_MM = (0.0, 1.5, 3.0, 4.5, 6.5, 9.0, 12.0, 16.0, 22.0)
# A new voxel this near to an older lesion may belong to its enlargement.
NEAR_MM = 6.0


@dataclass(frozen=True)
class History:
    """Older lesions of a patient, [s, h, w] each."""

    older: Mask
    #: New since w000; empty if that is unknown.
    new: Mask
    #: Taking up gadolinium at any session; empty if that is unknown.
    enhancing: Mask


def history_of(inputs: SpatialInputs) -> History | None:
    """Return the older lesions of a patient, None if no mask shows them."""
    older = inputs.mask("w000/t2", "w048/t2", "w048/net2")
    if older is None:
        return None
    nothing = np.zeros(older.shape, bool)
    new = inputs.mask("w048/net2")
    if new is None and "w000/t2" in inputs.channels and "w048/t2" in inputs.channels:
        new = (inputs.channels["w048/t2"] > 0) & (inputs.channels["w000/t2"] <= 0)
    enhancing = inputs.mask("w000/gad", "w048/gad")
    return History(
        older,
        nothing if new is None else new,
        nothing if enhancing is None else enhancing,
    )


def history_features(history: History, atlas: Float32s, spacing: Spacing, at: Places) -> Float32s:
    """Return features at the voxels `at` [n], [feature, n].

    `atlas` [s, h, w] is the density of lesions in other patients.
    """
    distance, nearest = _distance(history.older, spacing)
    distance = distance.ravel()[at]
    near = np.maximum(1 - distance / NEAR_MM, 0)
    lesions = _lesions_of(history, spacing)
    lesion = lesions.labels.ravel()[nearest[at]]
    active = lesions.active[lesion]
    return join(
        hats(distance, DISTANCE_KNOTS_MM),
        (distance == 0).astype(np.float32),
        near * lesions.log_volume[lesion],
        near * active,
        np.exp(-distance / 4) * active,
        _densities(history, spacing, at),
        regional_excess(history.older, atlas, spacing, at),
        preferred_sides(lesions.share[lesions.labels], atlas, at),
    )


@dataclass(frozen=True)
class _Lesions:
    """The older lesions of a patient, one by one; number 0 is no lesion."""

    #: Number of each voxel's lesion, [s, h, w].
    labels: npt.NDArray[np.int32]
    #: Log of the volume relative to 100 mm3, and 1 if part of it is new or enhances, [lesion + 1].
    log_volume: Float32s
    active: Float32s
    #: One over the voxels of a lesion, [lesion + 1].
    share: Float32s


def _lesions_of(history: History, spacing: Spacing) -> _Lesions:
    labels, number = components(history.older)
    flat = labels.ravel()
    voxels = np.maximum(np.bincount(flat, minlength=number + 1), 1)
    shown: Bools = (history.new | history.enhancing).ravel()
    active = np.bincount(flat[shown], minlength=number + 1) > 0
    log_volume = np.log(voxels * np.prod(spacing) / 100)
    is_lesion = np.arange(number + 1) > 0
    return _Lesions(
        labels,
        *(
            np.asarray(values * is_lesion, np.float32)
            for values in (log_volume, active, 1 / voxels)
        ),
    )


def _distance(older: Mask, spacing: Spacing) -> tuple[Float32s, Places]:
    """Return the distance to the nearest older lesion in mm, and that lesion's voxel, each [...].

    Without lesions all are at the last knot.
    """
    if not older.any():
        return (
            np.full(older.shape, DISTANCE_KNOTS_MM[-1], np.float32),
            np.zeros(older.size, np.intp),
        )
    distance, index = ndimage.distance_transform_edt(~older, sampling=spacing, return_indices=True)
    nearest = np.ravel_multi_index(tuple(index.reshape(3, -1)), older.shape)
    return distance.astype(np.float32), nearest


def _densities(history: History, spacing: Spacing, at: Places) -> Float32s:
    """Return log densities of older, new and enhancing lesions at two or three widths, [7, n]."""
    masks = np.stack([history.older, history.new, history.enhancing]).astype(np.float32)
    fine, middle = (smooth(masks, spacing, sigma).reshape(3, -1)[:, at] for sigma in (3.0, 7.0))
    wide = smooth(masks[0], spacing, 16.0).ravel()[at]
    return join(*np.log(fine + 0.02), *np.log(middle + 0.005), np.log(wide + 0.002))
