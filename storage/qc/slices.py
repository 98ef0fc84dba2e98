"""Draw every slice of a slab, three sessions side by side: FLAIR and lesion outlines.

Both pictures of a case are a column of equal strips, one for each slice, superior first. A page
shows one strip or all of them, with or without the outlines on top.
"""

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from storage.layout import CHANNELS, MASKS
from storage.preprocess.prepare import CaseArrays
from storage.radiological import AXIAL, to_radiological

# Okabe and Ito's colours, which colour-blind readers can tell apart. Later masks cover earlier
# ones.
COLOURS = {"t2": (86, 180, 233), "gad": (240, 228, 66), "net2": (255, 110, 40)}
# Approximate pixels per session. Outlines need more: one pixel wide, they must not fill a voxel.
FLAIR_WIDTH, OUTLINE_WIDTH = 112, 192
JPEG_QUALITY = 50  # differs by 3 of 255 grey levels in the root mean square
_ABSENT, _INK = 38, 235  # grey of a session without FLAIR, and of letters
_FONT_SIZE, _MARGIN = 10, 2

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SlicePictures:
    """Pictures of one case, in the same proportions."""

    #: JPEG of the FLAIR, with session and sides marked.
    flair: bytes
    #: PNG of the lesion outlines, transparent elsewhere.
    outlines: bytes


class Strip(NamedTuple):
    """Size in pixels of the picture of one slice in all sessions."""

    height: int
    width: int


class _Marks(NamedTuple):
    """Text on a strip: its pixels, what their halo leaves of the image, and their own grey."""

    place: npt.NDArray[np.bool_]
    light: npt.NDArray[np.float32]
    ink: npt.NDArray[np.float32]


def draw_slices(arrays: CaseArrays, sessions: tuple[str, ...]) -> SlicePictures:
    """Return the pictures of a case whose sessions have these titles."""
    return SlicePictures(_draw_flair(arrays, sessions), _draw_outlines(arrays))


def strip_size(slab: tuple[int, int, int], sessions: int) -> Strip:
    """Return the size of a strip in voxels; a border of one voxel parts neighbours."""
    return Strip(slab[1] + 1, sessions * (slab[2] + 1))


def _draw_flair(arrays: CaseArrays, sessions: tuple[str, ...]) -> bytes:
    has_flair = tuple(bool(there) for there in arrays.present[:, CHANNELS.index("flair")])
    grey = ((arrays.flair.astype(np.float32) + 1) * 127.5).astype(np.uint8)
    grey[[k for k, there in enumerate(has_flair) if not there]] = _ABSENT
    voxels = Image.fromarray(_tile(grey))
    slab = arrays.flair.shape[1:]
    zoom = _zoom(FLAIR_WIDTH, slab[-1])
    # Smooth, because JPEG spends twice the bytes on the edges of enlarged voxels.
    image = voxels.resize((voxels.width * zoom, voxels.height * zoom), Image.Resampling.BICUBIC)
    strip = (slab[1] + 1) * zoom, image.width
    notes = tuple("" if there else "no FLAIR" for there in has_flair)
    marks = _marks(*strip, sessions, notes)
    strips = np.asarray(image).reshape(-1, *strip).copy()
    strips[:, marks.place] = np.maximum(strips[:, marks.place] * marks.light, marks.ink)
    return _encode(Image.fromarray(strips.reshape(-1, image.width)), "JPEG", quality=JPEG_QUALITY)


def _draw_outlines(arrays: CaseArrays) -> bytes:
    """Return a picture with four colours: none, and one for each kind of mask."""
    tiles = [_tile(arrays.masks[:, number]) for number in range(len(MASKS))]
    rows, columns = tiles[0].shape
    zoom = _zoom(OUTLINE_WIDTH, arrays.masks.shape[-1])
    colours = np.zeros((rows, zoom, columns, zoom), np.uint8)
    for number, tile in enumerate(tiles, 1):
        _draw_edges(colours, tile, number)
    image = Image.frombytes("P", (columns * zoom, rows * zoom), colours.tobytes())
    image.putpalette([0, 0, 0, *(level for kind in MASKS for level in COLOURS[kind])])
    return _encode(image, "PNG", transparency=0, bits=2, compress_type=zlib.Z_RLE)


def _draw_edges(colours: Grey, mask: Grey, colour: int) -> None:
    """Colour the pixels [row, y, column, x] of a mask's voxels at edges to voxels outside of it."""
    y, x = np.nonzero(mask)
    around = np.pad(mask, 1)
    # The last pixel in one direction faces the neighbour there.
    for neighbour, pixels in (
        (around[y, x + 1], np.s_[:, 0, :]),
        (around[y + 2, x + 1], np.s_[:, -1, :]),
        (around[y + 1, x], np.s_[:, :, 0]),
        (around[y + 1, x + 2], np.s_[:, :, -1]),
    ):
        edge = neighbour == 0
        voxels = colours[y[edge], :, x[edge], :]
        voxels[pixels] = colour
        colours[y[edge], :, x[edge], :] = voxels


def _tile(slices: npt.NDArray[np.uint8]) -> Grey:
    """Place slices [session, s, h, w] as strips, superior first, in radiological convention.

    A black voxel below and to the right of each slice parts it from its neighbours.
    """
    shown = to_radiological(slices[:, ::-1])
    bordered = np.pad(shown, ((0, 0), (0, 0), (0, 1), (0, 1)))
    sessions, s, h, w = bordered.shape
    return bordered.transpose(1, 2, 0, 3).reshape(s * h, sessions * w)


def _zoom(target: int, voxels: int) -> int:
    return max(1, round(target / voxels))


@lru_cache(maxsize=16)
def _marks(height: int, width: int, titles: tuple[str, ...], notes: tuple[str, ...]) -> _Marks:
    """Return the titles, notes and letters of a strip."""
    font = ImageFont.load_default(_FONT_SIZE)
    panel = width // len(titles)
    layers = []
    for stroke in (1, 0):
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for number, (title, note) in enumerate(zip(titles, notes, strict=True)):
            left, right = number * panel, (number + 1) * panel
            middle = (left + right) // 2
            for text, position, anchor in (
                (title, (left + _MARGIN, _MARGIN), "lt"),
                (note, (middle, height // 2), "mm"),
                (AXIAL.left, (left + _MARGIN, height // 2), "lm"),
                (AXIAL.right, (right - 2 * _MARGIN, height // 2), "rm"),
                (AXIAL.top, (middle, _MARGIN), "mt"),
                (AXIAL.bottom, (middle, height - 2 * _MARGIN), "mb"),
            ):
                draw.text(position, text, fill=255, font=font, anchor=anchor, stroke_width=stroke)
        layers.append(np.asarray(image, np.float32) / np.float32(255))
    halo, ink = layers
    place = halo > 0
    return _Marks(place, np.asarray(1 - halo[place]), np.asarray(_INK * ink[place]))


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
