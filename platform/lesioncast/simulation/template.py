"""The ICBM152 anatomy of nilearn's wheel, labelled once a process and matched to a target spacing.

Axes are (s, h, w) at 1 mm in RAS+ order. The template is left-right symmetric and averaged: the
traps that follow from that (a false grey rim along the ventricles, faint sulci, deep grey matter
without a map of its own) are dealt with here, so that the rest sees clean labels.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import nilearn
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# FreeSurfer ids (left, right) as SynthSeg writes them; CSF and brain stem have one id.
WHITE, CORTEX, VENTRICLE, DEEP = (2, 41), (3, 42), (4, 43), (10, 49)
CEREBELLUM_WHITE, CEREBELLUM_CORTEX = (7, 46), (8, 47)
BRAIN_STEM, CSF = (16, 16), (24, 24)
REGIONS = {
    "cerebral white matter": WHITE,
    "cerebral cortex": CORTEX,
    "lateral ventricle": VENTRICLE,
    "deep grey matter": DEEP,
    "cerebellar white matter": CEREBELLUM_WHITE,
    "cerebellar cortex": CEREBELLUM_CORTEX,
    "brain stem": BRAIN_STEM,
    "cerebrospinal fluid": CSF,
}

# World coordinates (mm, MNI) are voxel + origin; the crop leaves 8 mm of air around the brain.
_CROP = (slice(0, 163), slice(18, 216), slice(18, 179))
ORIGIN = np.array([-72.0, -134.0 + 18, -98.0 + 18])
CENTRE = np.array([14.0, -17.0, 0.0])  # the middle of a volume: lateral ventricles mid-slab


@dataclass(frozen=True)
class Template:
    """What a subject's anatomy is sampled from; every array is [s, h, w] at `step` mm."""

    step: tuple[int, int, int]
    images: Array  # [4, s, h, w], channel-last in memory: inside, grey, csf, detail (see `Anatomy`)
    labels: npt.NDArray[np.int16]  # FreeSurfer ids, majority at the target's voxel
    ventricle_distance: Array  # mm, 0 inside
    cortex_distance: Array  # mm, 0 inside
    outward: Array  # [3, s, h, w] unit vectors away from the ventricles, fading with distance

    @property
    def inside(self) -> Array:
        """Brain fraction."""
        fraction: Array = self.images[0]
        return fraction


def _load(kind: str) -> npt.NDArray[np.uint8]:
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    image = nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    voxels = np.asanyarray(image.dataobj)  # [w, h, s]
    cropped: npt.NDArray[np.uint8] = np.ascontiguousarray(voxels.T[_CROP])
    return cropped


def _fraction(kind: str) -> Array:
    return _load(kind).astype(np.float32) / np.float32(255)


def _world(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float64], ...]:
    """Open grids of MNI z, y, x in mm."""
    s, h, w = np.ogrid[tuple(slice(0, size) for size in shape)]
    return s + ORIGIN[0], h + ORIGIN[1], w + ORIGIN[2]


def _component(mask: Mask, z: float, y: float, x: float) -> Mask:
    """The connected part of `mask` that holds the point (mm)."""
    components, _ = ndimage.label(mask)
    seed = tuple(np.round(np.array([z, y, x]) - ORIGIN).astype(int))
    found: Mask = components == components[seed]
    return found


def _deep_grey(grey: Array, t1: npt.NDArray[np.uint8], csf: Array) -> Mask:
    """Caudate, putamen, pallidum and thalamus: what is not white inside a box around them."""
    z, y, x = _world(grey.shape)
    region = ((y + 6) / 31) ** 2 + ((z - 4) / 21) ** 2 < 1
    region = region & (np.abs(x) < 31.5) & (z > -12)
    body = region & (csf < 0.4) & ((grey > 0.45) | (t1 < 206))
    opened: Mask = ndimage.binary_opening(body, iterations=2)
    return opened


def _hindbrain(shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """Cerebellum and brain stem, cut off by planes that follow the tentorium roughly."""
    z, y, x = _world(shape)
    tent = -8.0 - 0.35 * np.abs(x) - 0.35 * np.clip(-y - 60, 0, None)
    cerebellum = (z < tent) & (y < -38)
    stem = (z < -10) & (np.abs(x) < 19) & (y >= -38) & (y < -8)
    return cerebellum, stem


@dataclass(frozen=True)
class _Tissue:
    """The template's tissues at 1 mm, before any smoothing."""

    t1: npt.NDArray[np.uint8]
    inside: Mask
    grey: Array
    csf: Array
    ventricles: Mask
    deep: Mask
    cerebellum: Mask
    stem: Mask


def _tissue() -> _Tissue:
    t1 = _load("t1")
    grey, white = _fraction("gm"), _fraction("wm")
    inside = _component(ndimage.binary_opening(t1 > 0, iterations=2), 20, -30, 30)
    inside = ndimage.binary_fill_holes(inside)
    csf: Array = np.where(inside, np.clip(1 - grey - white, 0, 1), 0).astype(np.float32)
    ventricles = _component(csf > 0.5, 16, 15, 9)
    deep = _deep_grey(grey, t1, csf) & inside
    cerebellum, stem = _hindbrain(t1.shape)
    rim = ndimage.binary_dilation(ventricles, iterations=4) & ~deep & ~ventricles & (csf < 0.5)
    grey[~inside | rim] = 0
    return _Tissue(t1, inside, grey, csf, ventricles, deep, cerebellum & inside, stem & inside)


def _tissue_classes(tissue: _Tissue) -> dict[tuple[int, int], Mask]:
    """Disjoint regions by FreeSurfer ids (left, right)."""
    fluid = tissue.inside & (tissue.csf > 0.5)
    solid = tissue.inside & ~fluid & ~tissue.deep & ~tissue.stem
    grey = tissue.grey > 0.5
    return {
        VENTRICLE: tissue.ventricles,
        CSF: fluid & ~tissue.ventricles,
        DEEP: tissue.deep,
        BRAIN_STEM: tissue.stem & ~fluid & ~tissue.deep,
        CEREBELLUM_WHITE: solid & tissue.cerebellum & ~grey,
        CEREBELLUM_CORTEX: solid & tissue.cerebellum & grey,
        WHITE: solid & ~tissue.cerebellum & ~grey,
        CORTEX: solid & ~tissue.cerebellum & grey,
    }


def _smooth(volume: npt.ArrayLike, spacing: tuple[float, ...]) -> Array:
    """Blur with the slice and pixel profile (FWHM a voxel) of the target grid."""
    sigma = [0.42 * size if size > 1 else 0.0 for size in spacing]
    blurred: Array = ndimage.gaussian_filter(np.asarray(volume, np.float32), sigma, truncate=2.5)
    return blurred


def _majority_labels(
    classes: dict[tuple[int, int], Mask], spacing: tuple[float, ...]
) -> npt.NDArray[np.int16]:
    """The label that fills most of a target voxel, left of the midline (x < 0) and right."""
    shape = next(iter(classes.values())).shape
    best = np.zeros(shape, np.float32)
    total = np.zeros(shape, np.float32)
    labels = np.zeros(shape, np.int16)
    left = np.broadcast_to(_world(shape)[2] < 0, shape)
    for ids, mask in classes.items():
        share = _smooth(mask, spacing)
        total += share
        wins = share > best
        best[wins] = share[wins]
        labels[wins] = np.where(left[wins], *map(np.int16, ids))
    labels[total < 0.5] = 0
    return labels


def _outward(distance: Array) -> Array:
    """Unit vectors away from the ventricles, fading to nothing over about 12 mm."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance, 3.0)))
    length = np.linalg.norm(gradient, axis=0) + 1e-3
    faded: Array = (gradient / length * np.exp(-distance / 12)).astype(np.float32)
    return faded


def _distance(mask: Mask) -> Array:
    distance: Array = ndimage.distance_transform_edt(~mask).astype(np.float32)
    return distance


def _detail(tissue: _Tissue) -> Array:
    """What dense myelin (bright on T1) takes from FLAIR within white matter and deep grey."""
    white = tissue.inside & (tissue.grey < 0.2) & (tissue.csf < 0.2)
    centred = np.where(white, 222.0 - tissue.t1, np.where(tissue.deep, 200.0 - tissue.t1, 0.0))
    return np.clip(0.004 * centred, -0.06, 0.06).astype(np.float32)


@lru_cache(maxsize=2)
def template(spacing: tuple[float, float, float]) -> Template:
    """The template smoothed for a target `spacing` (s, h, w) in mm; computed once a process."""
    tissue = _tissue()
    classes = _tissue_classes(tissue)
    ventricle_distance = _distance(tissue.ventricles)
    # The average of 152 brains has faint sulci and a washed-out ribbon: steepen both.
    sulci = np.where(tissue.ventricles, tissue.csf, np.clip(1.7 * tissue.csf - 0.05, 0, 1))
    grey = np.clip(1.7 * (tissue.grey - 0.45) + 0.5, 0, 1) * (1 - sulci)
    grey = np.where(tissue.inside, grey, 0)
    images = [_smooth(image, spacing) for image in (tissue.inside, grey, sulci, _detail(tissue))]
    # Kept at about half a target voxel: no detail is lost to the blur, and it fits the cache.
    s, h, w = (max(1, int(size / 1.5)) for size in spacing)
    step = (s, h, w)

    def kept(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(volume[..., ::s, ::h, ::w])

    return Template(
        step=step,
        images=np.moveaxis(np.stack([kept(image) for image in images], axis=-1), -1, 0),
        labels=kept(_majority_labels(classes, spacing)),
        ventricle_distance=kept(ventricle_distance),
        cortex_distance=kept(_distance(classes[CORTEX])),
        outward=kept(_outward(ventricle_distance)),
    )
