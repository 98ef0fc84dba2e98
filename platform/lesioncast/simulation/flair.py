"""FLAIR as a scanner would show it: tissue contrast, lesions, texture, bias field and noise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.simulation.anatomy import Anatomy, TargetGrid
from lesioncast.simulation.lesions import Lesion

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScannerContrast:
    """How a trial's scanners show tissue, in units of white matter."""

    grey: float
    csf: float
    noise: float
    gain: float  # stored intensity of white matter


CONTRASTS = {
    "BRAVO": ScannerContrast(grey=1.20, csf=0.24, noise=0.035, gain=420.0),
    "OPERA": ScannerContrast(grey=1.25, csf=0.16, noise=0.025, gain=300.0),
    "DEFINE": ScannerContrast(grey=1.16, csf=0.30, noise=0.045, gain=760.0),
}
_FADED = 0.85  # a new lesion of w048 is a little fainter at w096
_ENHANCED = 1.2


def lesion_brightness(lesion: Lesion, *, sessions: int, baseline: bool) -> float:
    """FLAIR excess of a lesion some sessions after it came: fresh and enhancing, or fading."""
    if baseline:
        return lesion.brightness
    if sessions > 0:
        return _FADED * lesion.brightness
    return (_ENHANCED if lesion.enhances else 1.0) * lesion.brightness


def scan_sessions(
    rng: np.random.Generator,
    anatomy: Anatomy,
    frame: TargetGrid,
    lesions: Sequence[Iterable[tuple[Lesion, float]]],
    trial: str,
) -> list[Array]:
    """FLAIR [s, h, w] of each session, given its lesions with their excess over white matter."""
    contrast = _site_contrast(rng, trial)
    tissue = _tissue(rng, anatomy, frame, contrast)
    return [
        _scan(rng, tissue + _lesion_signal(shown, anatomy), anatomy, frame, contrast)
        for shown in lesions
    ]


def _site_contrast(rng: np.random.Generator, trial: str) -> ScannerContrast:
    """The trial's contrast as one site's scanner renders it."""
    usual = CONTRASTS[trial]
    grey, csf, noise, gain = rng.standard_normal(4)
    return ScannerContrast(
        grey=usual.grey + 0.015 * grey,
        csf=usual.csf * np.exp(0.1 * csf),
        noise=usual.noise * np.exp(0.2 * noise),
        gain=usual.gain * np.exp(0.2 * gain),
    )


def _tissue(
    rng: np.random.Generator, anatomy: Anatomy, frame: TargetGrid, contrast: ScannerContrast
) -> Array:
    """The brain without lesions [s, h, w], white matter about 1; the same in every session."""
    solid = 1 - anatomy.csf
    tissue = 1 + (contrast.grey - 1) * anatomy.grey + anatomy.detail
    halo = rng.uniform(0.0, 0.14) * np.exp(-anatomy.ventricle_distance / 4)
    texture = np.float32(0.028) * frame.texture.sample(rng)
    tissue = solid * (tissue + halo + texture) + anatomy.csf * contrast.csf
    shading = np.float32(0.07) * frame.bias.sample(rng)
    shaded: Array = (tissue * np.exp(shading)).astype(np.float32)
    return shaded


def _lesion_signal(lesions: Iterable[tuple[Lesion, float]], anatomy: Anatomy) -> Array:
    """FLAIR excess [s, h, w] of lesions; where they overlap the brighter one shows."""
    signal = np.zeros(anatomy.inside.shape, np.float32)
    for lesion, brightness in lesions:
        here = signal[lesion.window]
        np.maximum(here, brightness * lesion.occupancy, out=here)
    return signal * (1 - anatomy.csf)


def _scan(
    rng: np.random.Generator,
    truth: Array,
    anatomy: Anatomy,
    frame: TargetGrid,
    contrast: ScannerContrast,
) -> Array:
    """One session's magnitude image [s, h, w]: its own bias, gain and Rician noise."""
    gain = contrast.gain * np.exp(0.05 * rng.standard_normal())
    drift = np.float32(0.03) * frame.bias.sample(rng)
    ideal = truth * anatomy.inside * (1 + drift)
    noise = rng.standard_normal((2, *truth.shape), dtype=np.float32) * np.float32(contrast.noise)
    magnitude = np.hypot(ideal + noise[0], noise[1])
    stripped: Array = np.where(anatomy.inside > 0.4, magnitude * np.float32(gain), 0)
    return stripped.astype(np.float32)
