"""Make up cases whose law of location is known: lesions in white matter near older lesions."""

import numpy as np
from scipy import ndimage

from lesioncast.priors.spatial.inputs import SpatialCase, SpatialInputs

SHAPE, SPACING = (5, 20, 18), (3.0, 3.0, 3.0)
NAMES = ("w000/t2", "w048/t2", "w048/net2", "w000/gad", "w048/gad")


def signed(mask: np.ndarray) -> np.ndarray:
    """Return a mask as -1 and 1."""
    return np.where(mask, 1, -1).astype(np.float32)


def labels_of_brain() -> np.ndarray:
    """Return an ellipse of white matter with a ventricle and a rim of cortex, [s, h, w]."""
    _, h, w = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    radius = np.hypot((h - 9.5) / 9, (w - 8.5) / 8) + np.zeros(SHAPE)
    labels = np.zeros(SHAPE, np.int16)
    labels[radius <= 1] = 3
    labels[radius < 0.75] = 2
    labels[radius < 0.25] = 4
    return labels


def make_case(seed: int, *, near: float = 0.7) -> SpatialCase:
    """Draw older lesions in white matter, and new ones there, a share `near` beside older ones."""
    rng = np.random.default_rng(seed)
    labels = labels_of_brain()
    white = labels == 2
    older = np.zeros(SHAPE, bool)
    older.flat[rng.choice(np.flatnonzero(white), 6)] = True
    distance = ndimage.distance_transform_edt(~older, sampling=SPACING)
    beside = white & ~older & (distance < 5)
    outcome = np.zeros(SHAPE, bool)
    for _ in range(8):
        allowed = beside if rng.random() < near else white
        outcome.flat[rng.choice(np.flatnonzero(allowed))] = True
    level = np.select([labels == 2, labels == 3, labels == 4], [0.0, 0.25, -0.8], -1.0)
    flair = level + 0.05 * rng.standard_normal(SHAPE) + 0.5 * older
    flair = np.where(labels > 0, np.clip(flair, -0.99, 1), -1).astype(np.float32)
    nothing = signed(np.zeros(SHAPE, bool))
    masks = dict.fromkeys(NAMES, nothing) | {"w000/t2": signed(older), "w048/t2": signed(older)}
    channels = {"w000/flair": flair, "w048/flair": flair, **masks}
    return SpatialCase(SpatialInputs(channels, SPACING, labels), outcome)
