"""Simulate FLAIR images: tissue contrast, lesions, texture, bias field and noise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Float32s
from lesioncast.simulation.anatomy import Anatomy, TargetGrid
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.lesions.sites import Window


@dataclass(frozen=True)
class ScannerContrast:
    """Contrast of a trial's scanners, relative to the intensity of white matter."""

    grey: float
    csf: float
    #: Standard deviation of the noise.
    noise: float
    #: Stored intensity of white matter.
    gain: float


CONTRASTS = {
    "BRAVO": ScannerContrast(grey=1.20, csf=0.24, noise=0.035, gain=420.0),
    "OPERA": ScannerContrast(grey=1.25, csf=0.16, noise=0.025, gain=300.0),
    "DEFINE": ScannerContrast(grey=1.16, csf=0.30, noise=0.045, gain=760.0),
}


@dataclass(frozen=True)
class FlairExcess:
    """FLAIR excess relative to white matter in a part of the box."""

    window: Window
    #: Excess at the voxels of the window.
    values: Float32s


# Relative brightness of a new lesion at the session after the one that first shows it, and of a
# lesion that takes up gadolinium.
_FADED = 0.85
_ENHANCING = 1.2


def lesion_excess(lesion: Lesion, *, sessions: int, baseline: bool) -> FlairExcess:
    """Return the FLAIR excess of a lesion `sessions` sessions after the first that shows it.

    A lesion of the baseline session keeps its brightness.
    """
    if baseline:
        relative = 1.0
    elif sessions > 0:
        relative = _FADED
    else:
        relative = _ENHANCING if lesion.enhances else 1.0
    return FlairExcess(lesion.window, relative * lesion.brightness * lesion.occupancy)


def scan_sessions(
    rng: np.random.Generator,
    anatomy: Anatomy,
    grid: TargetGrid,
    excess: Sequence[Iterable[FlairExcess]],
    contrast: ScannerContrast,
) -> list[Float32s]:
    """Simulate FLAIR [s, h, w] of each session, given by session what exceeds white matter.

    `contrast` is that of the trial's scanners; that of the patient's site lies around it.
    """
    site = _site_contrast(rng, contrast)
    tissue = _tissue(rng, anatomy, grid, site)
    return [
        _scan(rng, tissue + _excess_signal(patches, anatomy), anatomy, grid, site)
        for patches in excess
    ]


def _site_contrast(rng: np.random.Generator, contrast: ScannerContrast) -> ScannerContrast:
    """Draw the contrast of one site's scanner around that of its trial."""
    grey, csf, noise, gain = rng.standard_normal(4)
    return ScannerContrast(
        grey=contrast.grey + 0.015 * grey,
        csf=contrast.csf * np.exp(0.1 * csf),
        noise=contrast.noise * np.exp(0.2 * noise),
        gain=contrast.gain * np.exp(0.2 * gain),
    )


def _tissue(
    rng: np.random.Generator, anatomy: Anatomy, grid: TargetGrid, contrast: ScannerContrast
) -> Float32s:
    """Return the brain without lesions, [s, h, w]; white matter is about 1.

    It is the same in every session, so that only lesions and noise change.
    """
    solid = 1 - anatomy.csf
    tissue = 1 + (contrast.grey - 1) * anatomy.grey + anatomy.detail
    halo = rng.uniform(0.0, 0.14) * np.exp(-anatomy.ventricle_distance / 4)
    texture = np.float32(0.028) * grid.texture.sample(rng)
    tissue = solid * (tissue + halo + texture) + anatomy.csf * contrast.csf
    shading = np.float32(0.07) * grid.bias.sample(rng)
    shaded: Float32s = (tissue * np.exp(shading)).astype(np.float32)
    return shaded


def _excess_signal(patches: Iterable[FlairExcess], anatomy: Anatomy) -> Float32s:
    """Return the FLAIR excess, [s, h, w]; where two patches overlap, the brighter one counts."""
    signal = np.zeros(anatomy.inside.shape, np.float32)
    for patch in patches:
        in_window = signal[patch.window]
        np.maximum(in_window, patch.values, out=in_window)
    return signal * (1 - anatomy.csf)


def _scan(
    rng: np.random.Generator,
    truth: Float32s,
    anatomy: Anatomy,
    grid: TargetGrid,
    contrast: ScannerContrast,
) -> Float32s:
    """Simulate the magnitude image [s, h, w] of one session, with its own bias, gain and noise."""
    gain = contrast.gain * np.exp(0.05 * rng.standard_normal())
    drift = np.float32(0.03) * grid.bias.sample(rng)
    ideal = truth * anatomy.inside * (1 + drift)
    noise = rng.standard_normal((2, *truth.shape), dtype=np.float32) * np.float32(contrast.noise)
    # The magnitude of a signal with complex Gaussian noise is Rician, as in MRI.
    magnitude = np.hypot(ideal + noise[0], noise[1])
    stripped: Float32s = np.where(anatomy.inside > 0.4, magnitude * np.float32(gain), 0)
    return stripped.astype(np.float32)
