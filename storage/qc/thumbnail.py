"""Draw the middle slice of a slab: three sessions side by side, masks as outlines."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from storage.layout import CHANNELS, MASKS, SESSIONS
from storage.preprocess.prepare import CaseArrays

WIDTH = 192  # approximate pixels per session
# Okabe and Ito's colours, which colour-blind readers can tell apart. Later masks cover earlier
# ones.
COLOURS = {"t2": (86, 180, 233), "gad": (240, 228, 66), "net2": (255, 110, 40)}
_GAP = 4
_ABSENT = (38, 38, 38)


def thumbnail(arrays: CaseArrays) -> bytes:
    """Return a JPEG of the middle slice: anterior up, the patient's right on the right."""
    zoom = max(1, round(WIDTH / arrays.flair.shape[-1]))
    panels = [_panel(arrays, k, zoom) for k in range(len(SESSIONS))]
    height, width, _ = panels[0].shape
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    joined = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    image = Image.fromarray(joined)
    draw = ImageDraw.Draw(image)
    for k, session in enumerate(SESSIONS):
        has_flair = arrays.present[k, CHANNELS.index("flair")]
        position = k * (width + _GAP) + 5, 3
        draw.text(position, session if has_flair else f"{session}: no FLAIR", fill=(235, 235, 235))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=82, subsampling=0)
    return out.getvalue()


def _panel(arrays: CaseArrays, k: int, zoom: int) -> npt.NDArray[np.uint8]:
    middle = arrays.flair.shape[1] // 2
    grey = (arrays.flair[k, middle].astype(np.float32) + 1) * 127.5
    if arrays.present[k, CHANNELS.index("flair")]:
        panel = np.repeat(
            _to_display_orientation(grey.astype(np.uint8), zoom)[..., None], 3, axis=-1
        )
    else:
        panel = np.full((*_to_display_orientation(grey, zoom).shape, 3), _ABSENT, np.uint8)
    for m, kind in enumerate(MASKS):
        panel[_outline(_to_display_orientation(arrays.masks[k, m, middle], zoom) != 0)] = COLOURS[
            kind
        ]
    return panel


def _to_display_orientation(rows: npt.NDArray[Any], zoom: int) -> npt.NDArray[Any]:
    """Flip rows (h, w), which run to anterior, for display and enlarge each voxel to a square."""
    return rows[::-1].repeat(zoom, axis=0).repeat(zoom, axis=1)


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return np.asarray(mask & ~binary_erosion(mask, border_value=1))
