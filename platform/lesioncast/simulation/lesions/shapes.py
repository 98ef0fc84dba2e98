"""Draw the shape of one lesion: an irregular ellipsoid that grows within the allowed tissue."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from lesioncast.arrays import Float32s, Floats, Mask
from lesioncast.simulation.lesions.sites import Voxel, Window
from storage.layout import CONNECTIVITY_26

# Share of the new lesions that still enhance at the session that first shows them.
_ENHANCING_SHARE = 0.3
# Relative amplitude of the waves that make an ellipsoid irregular.
_LUMPINESS = 0.13


@dataclass(frozen=True)
class Lesion:
    """One lesion in its window of the target grid's box."""

    #: Part of the box that contains the lesion with a margin.
    window: Window
    #: Voxels of the lesion in the window.
    mask: Mask
    #: Lesion fraction of each voxel in the window, in [0, 1]; 1/2 at the edge.
    occupancy: Float32s
    centre: Voxel
    #: FLAIR excess relative to white matter.
    brightness: float
    #: True if the lesion takes up gadolinium while it is new.
    enhances: bool
    #: True if the lesion is a lobe that enlarges an older one.
    enlarges: bool = False


def grow_lesion(
    rng: np.random.Generator,
    allowed: Mask,
    ventricle_distance: Float32s,
    at: Voxel,
    spacing: tuple[float, ...],
    radius: float,
) -> Lesion:
    """Grow a connected lesion around the voxel `at` within the tissue `allowed`.

    The lesion has at least its central voxel.
    """
    window, occupancy = ellipsoid_occupancy(rng, ventricle_distance, at, spacing, radius)
    mask = (occupancy > 0.5) & allowed[window]
    centre = tuple(voxel - part.start for voxel, part in zip(at, window, strict=True))
    mask[centre] = True
    labels, count = ndimage.label(mask, CONNECTIVITY_26)
    if count > 1:  # other tissue or lesions cut it: keep the part with the centre
        mask = labels == labels[centre]
    return Lesion(
        window=window,
        mask=mask,
        occupancy=np.where(mask, np.maximum(occupancy, 0.5), occupancy),
        centre=at,
        brightness=float(rng.uniform(0.25, 0.60)),
        enhances=bool(rng.random() < _ENHANCING_SHARE),
    )


def ellipsoid_occupancy(
    rng: np.random.Generator,
    ventricle_distance: Float32s,
    at: Voxel,
    spacing: tuple[float, ...],
    radius: float,
) -> tuple[Window, Float32s]:
    """Return the occupancy of an irregular ellipsoid about `at`, in a window with a free margin."""
    forward = _long_axis(rng, ventricle_distance, at)
    stretch = rng.uniform(1.0, 1.7)
    across, along = radius * stretch ** (-1 / 3), radius * stretch ** (2 / 3)
    furthest = along / (1 - _LUMPINESS) ** 2
    window, offsets = [], []
    for voxel, size, step in zip(at, ventricle_distance.shape, spacing, strict=True):
        half = int(furthest / step + 1.5) + 1
        part = slice(max(0, voxel - half), min(size, voxel + half + 1))
        offsets.append((np.arange(part.start, part.stop) - voxel - rng.uniform(-0.5, 0.5)) * step)
        window.append(part)
    s, h, w = np.ix_(*offsets)
    ahead = forward[0] * s + forward[1] * h + forward[2] * w
    beside = np.clip(s * s + h * h + w * w - ahead * ahead, 0, None)
    surface = np.sqrt(beside / across**2 + (ahead / along) ** 2)  # 1 on the ellipsoid
    for k in rng.standard_normal((2, 3)) * 2.5 / radius:
        phase = k[0] * s + k[1] * h + k[2] * w + rng.uniform(0, 2 * np.pi)
        surface *= 1 + _LUMPINESS * np.sin(phase)
    edge = max(2.5, spacing[1])  # mm from inside to outside
    occupancy = special.expit((1 - surface) * across * (4 / edge)).astype(np.float32)
    return (window[0], window[1], window[2]), occupancy


def _long_axis(rng: np.random.Generator, ventricle_distance: Float32s, at: Voxel) -> Floats:
    """Draw the long axis of a lesion: away from near ventricles (Dawson's fingers), else random."""
    direction = rng.standard_normal(3)
    if ventricle_distance[at] < 8:
        around = tuple(slice(max(0, voxel - 1), voxel + 2) for voxel in at)
        near = ventricle_distance[around]
        for axis in range(3):
            slope = near.take(-1, axis).mean() - near.take(0, axis).mean()
            direction[axis] = slope + 0.3 * direction[axis]
    return direction / (np.linalg.norm(direction) + 1e-9)
