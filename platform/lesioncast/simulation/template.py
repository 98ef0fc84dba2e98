"""Label the ICBM152 template from nilearn's wheel and match it to a target spacing.

Axes are (s, h, w) at 1 mm in RAS+ order. The template is an average of 152 brains and left-right
symmetric. It has a false rim of grey matter along the ventricles, faint sulci and no map of deep
grey matter. This module corrects all three, so that other modules get clean labels.
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

from lesioncast.arrays import Float32s, LabelMap, Mask
from lesioncast.imaging.regions import (
    BRAIN_STEM,
    CEREBELLAR_CORTEX,
    CEREBELLAR_WHITE_MATTER,
    CORTEX,
    CSF,
    DEEP_GREY,
    VENTRICLE,
    WHITE_MATTER,
)

# World coordinates (mm, MNI) are voxel + origin. The crop leaves 8 mm of air around the brain.
_CROP = (slice(0, 163), slice(18, 216), slice(18, 179))
ORIGIN = np.array([-72.0, -134.0 + 18, -98.0 + 18])
# Centre of every simulated volume. It puts the lateral ventricles into the middle of the slab.
CENTRE = np.array([14.0, -17.0, 0.0])


@dataclass(frozen=True)
class Template:
    """Arrays from which each subject's anatomy is sampled, [s, h, w] at `step` mm."""

    #: Distance of neighbouring voxels in mm, (s, h, w).
    step: tuple[int, int, int]
    #: Brain, grey matter, CSF and detail as in `Anatomy`, [4, s, h, w], channel-last in memory.
    images: Float32s
    #: FreeSurfer ids: the majority within a voxel of the target grid.
    labels: LabelMap
    #: Distance to the ventricles in mm; 0 inside.
    ventricle_distance: Float32s
    #: Distance to the cortex in mm; 0 inside.
    cortex_distance: Float32s
    #: Unit vectors away from the ventricles, which decay with distance, [3, s, h, w].
    outward: Float32s

    @property
    def inside(self) -> Float32s:
        """Brain fraction."""
        fraction: Float32s = self.images[0]
        return fraction


def _load(kind: str) -> npt.NDArray[np.uint8]:
    """Load one cropped template volume: t1, gm or wm."""
    folder = Path(nilearn.__file__).parent / "datasets" / "data"
    image = nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    voxels = np.asanyarray(image.dataobj)  # [w, h, s]
    cropped: npt.NDArray[np.uint8] = np.ascontiguousarray(voxels.T[_CROP])
    return cropped


def _fraction(kind: str) -> Float32s:
    """Load a tissue map as fractions in [0, 1]."""
    return _load(kind).astype(np.float32) / np.float32(255)


def _world(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.float64], ...]:
    """Return MNI coordinates z, y, x in mm as three arrays that broadcast to `shape`."""
    s, h, w = np.ogrid[tuple(slice(0, size) for size in shape)]
    return s + ORIGIN[0], h + ORIGIN[1], w + ORIGIN[2]


def _component(mask: Mask, z: float, y: float, x: float) -> Mask:
    """Return the connected component of `mask` that contains the point (mm)."""
    components, _ = ndimage.label(mask)
    seed = tuple(np.round(np.array([z, y, x]) - ORIGIN).astype(int))
    component: Mask = components == components[seed]
    return component


def _deep_grey(grey: Float32s, t1: npt.NDArray[np.uint8], csf: Float32s) -> Mask:
    """Segment caudate, putamen, pallidum and thalamus: grey voxels in an ellipse around them."""
    z, y, x = _world(grey.shape)
    region = ((y + 6) / 31) ** 2 + ((z - 4) / 21) ** 2 < 1
    region = region & (np.abs(x) < 31.5) & (z > -12)
    body = region & (csf < 0.4) & ((grey > 0.45) | (t1 < 206))
    opened: Mask = ndimage.binary_opening(body, iterations=2)
    return opened


def _hindbrain(shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """Return cerebellum and brain stem, cut off by planes near the tentorium."""
    z, y, x = _world(shape)
    tent = -8.0 - 0.35 * np.abs(x) - 0.35 * np.clip(-y - 60, 0, None)
    cerebellum = (z < tent) & (y < -38)
    stem = (z < -10) & (np.abs(x) < 19) & (y >= -38) & (y < -8)
    return cerebellum, stem


@dataclass(frozen=True)
class _Tissue:
    """Tissues of the template at 1 mm, before any smoothing."""

    t1: npt.NDArray[np.uint8]
    inside: Mask
    grey: Float32s
    csf: Float32s
    ventricles: Mask
    deep: Mask
    cerebellum: Mask
    stem: Mask


def _tissue() -> _Tissue:
    """Segment the template into tissues."""
    t1 = _load("t1")
    grey, white = _fraction("gm"), _fraction("wm")
    inside = _component(ndimage.binary_opening(t1 > 0, iterations=2), 20, -30, 30)
    inside = ndimage.binary_fill_holes(inside)
    csf: Float32s = np.where(inside, np.clip(1 - grey - white, 0, 1), 0).astype(np.float32)
    ventricles = _component(csf > 0.5, 16, 15, 9)
    deep = _deep_grey(grey, t1, csf) & inside
    cerebellum, stem = _hindbrain(t1.shape)
    # Averaging mixes fluid and white matter along the ventricles, which looks like grey matter.
    rim = ndimage.binary_dilation(ventricles, iterations=4) & ~deep & ~ventricles & (csf < 0.5)
    grey[~inside | rim] = 0
    return _Tissue(t1, inside, grey, csf, ventricles, deep, cerebellum & inside, stem & inside)


def _tissue_classes(tissue: _Tissue) -> dict[tuple[int, int], Mask]:
    """Return disjoint regions by their FreeSurfer ids (left, right)."""
    fluid = tissue.inside & (tissue.csf > 0.5)
    solid = tissue.inside & ~fluid & ~tissue.deep & ~tissue.stem
    grey = tissue.grey > 0.5
    return {
        VENTRICLE: tissue.ventricles,
        CSF: fluid & ~tissue.ventricles,
        DEEP_GREY: tissue.deep,
        BRAIN_STEM: tissue.stem & ~fluid & ~tissue.deep,
        CEREBELLAR_WHITE_MATTER: solid & tissue.cerebellum & ~grey,
        CEREBELLAR_CORTEX: solid & tissue.cerebellum & grey,
        WHITE_MATTER: solid & ~tissue.cerebellum & ~grey,
        CORTEX: solid & ~tissue.cerebellum & grey,
    }


def _smooth(volume: npt.ArrayLike, spacing: tuple[float, ...]) -> Float32s:
    """Blur with the point spread of the target grid, a Gaussian with one voxel full width."""
    sigma = [0.42 * size if size > 1 else 0.0 for size in spacing]
    blurred: Float32s = ndimage.gaussian_filter(np.asarray(volume, np.float32), sigma, truncate=2.5)
    return blurred


def _majority_labels(classes: dict[tuple[int, int], Mask], spacing: tuple[float, ...]) -> LabelMap:
    """Return the label that fills most of a target voxel; left is x < 0."""
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


def _outward(distance: Float32s) -> Float32s:
    """Return unit vectors away from the ventricles that decay over about 12 mm."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance, 3.0)))
    length = np.linalg.norm(gradient, axis=0) + 1e-3
    decaying: Float32s = (gradient / length * np.exp(-distance / 12)).astype(np.float32)
    return decaying


def _distance(mask: Mask) -> Float32s:
    """Return the distance to `mask` in mm; 0 inside."""
    distance: Float32s = ndimage.distance_transform_edt(~mask).astype(np.float32)
    return distance


def _detail(tissue: _Tissue) -> Float32s:
    """Return the FLAIR variation within white and deep grey matter.

    Dense myelin is bright on T1 and dark on FLAIR, so the variation follows the inverted T1.
    """
    white = tissue.inside & (tissue.grey < 0.2) & (tissue.csf < 0.2)
    centred = np.where(white, 222.0 - tissue.t1, np.where(tissue.deep, 200.0 - tissue.t1, 0.0))
    return np.clip(0.004 * centred, -0.06, 0.06).astype(np.float32)


@lru_cache(maxsize=2)
def template(spacing: tuple[float, float, float]) -> Template:
    """Return the template for a target `spacing` (s, h, w) in mm; it is computed once a process."""
    tissue = _tissue()
    classes = _tissue_classes(tissue)
    ventricle_distance = _distance(tissue.ventricles)
    # The average of 152 brains has faint sulci and a blurred cortex: raise the contrast of both.
    sulci = np.where(tissue.ventricles, tissue.csf, np.clip(1.7 * tissue.csf - 0.05, 0, 1))
    grey = np.clip(1.7 * (tissue.grey - 0.45) + 0.5, 0, 1) * (1 - sulci)
    grey = np.where(tissue.inside, grey, 0)
    images = [_smooth(image, spacing) for image in (tissue.inside, grey, sulci, _detail(tissue))]
    # Keep about two samples a target voxel: the blur leaves no finer detail, and the smaller arrays
    # fit the processor's cache.
    s, h, w = (max(1, int(size / 1.5)) for size in spacing)
    step = (s, h, w)

    def subsample(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(volume[..., ::s, ::h, ::w])

    return Template(
        step=step,
        images=np.moveaxis(np.stack([subsample(image) for image in images], axis=-1), -1, 0),
        labels=subsample(_majority_labels(classes, spacing)),
        ventricle_distance=subsample(ventricle_distance),
        cortex_distance=subsample(_distance(classes[CORTEX])),
        outward=subsample(_outward(ventricle_distance)),
    )
