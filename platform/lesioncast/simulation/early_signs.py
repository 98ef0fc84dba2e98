"""Show in FLAIR which tissue is about to change: halos of active lesions, and prone places."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from lesioncast.arrays import Mask
from lesioncast.imaging.regions import WHITE_MATTER
from lesioncast.simulation.flair import FlairExcess
from lesioncast.simulation.lesions.placement import PeriodStart
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.lesions.sites import Window

# Distance in mm over which a halo decays to 1/e, and where it ends.
_HALO_MM, _HALO_END_MM = 2.5, 6.0


def early_signs(start: PeriodStart, visible: Sequence[bool]) -> list[FlairExcess]:
    """Return what the session that begins a period shows of the lesions to come.

    `visible` says which of the n `start.earlier` lesions the session shows, [n]. The signs follow
    from what precedes the period, so they are the same whatever happens in it. The list is empty if
    the settings have no early sign.
    """
    strength = start.brain.settings.early_sign
    if not strength:
        return []
    labels = start.brain.anatomy.labels
    white = (labels == WHITE_MATTER[0]) | (labels == WHITE_MATTER[1])
    signs = [
        _halo(lesion, white, start.brain.spacing, strength)
        for lesion, active, shown in zip(start.earlier, start.active, visible, strict=True)
        if active and shown
    ]
    if start.prone is not None:
        whole = tuple(slice(0, size) for size in white.shape)
        window = (whole[0], whole[1], whole[2])
        signs.append(FlairExcess(window, np.float32(strength) * start.prone * white))
    return signs


def _halo(lesion: Lesion, white: Mask, spacing: tuple[float, ...], strength: float) -> FlairExcess:
    """Return an excess of white matter around a lesion that decays with the distance from it."""
    window, inner = _widen(lesion.window, white.shape, spacing)
    mask = np.zeros(white[window].shape, bool)
    mask[inner] = lesion.mask
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    around = white[window] & ~mask & (distance < _HALO_END_MM)
    values = np.where(around, strength * np.exp(-distance / _HALO_MM), 0)
    return FlairExcess(window, values.astype(np.float32))


def _widen(
    window: Window, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[Window, Window]:
    """Return a window widened by the reach of a halo, and where the old one lies inside it."""
    wide, inner = [], []
    for part, size, step in zip(window, shape, spacing, strict=True):
        reach = int(np.ceil(_HALO_END_MM / step))
        first = max(0, part.start - reach)
        wide.append(slice(first, min(size, part.stop + reach)))
        inner.append(slice(part.start - first, part.stop - first))
    return (wide[0], wide[1], wide[2]), (inner[0], inner[1], inner[2])
