"""How a case's images look, whatever lesions they show: a few numbers that a scanner could decide.

Intensity, texture and shading of FLAIR at w000 and at w048.
"""

import numpy as np
import numpy.typing as npt

from lesioncast.imaging.channels import CHANNELS, SESSIONS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IMAGE_STATISTICS = (
    *(f"intensity_{quantile:.2f}" for quantile in QUANTILES),
    "intensity_sd",
    "air",
    "head_volume",
    "edges",
    "noise",
    "smooth_in_plane",
    "smooth_across",
    "shade_up",
    "shade_forward",
    "shade_right",
)
INPUT_SESSIONS = SESSIONS[:2]
APPEARANCE_FEATURES = tuple(
    f"{name}_{session}" for session in INPUT_SESSIONS for name in IMAGE_STATISTICS
)


def appearance_features(
    flair: npt.NDArray[np.float16], present: Bools, spacing: tuple[float, float, float]
) -> Floats:
    """The numbers of `LOOKS` for `flair` [session, s, h, w], `present` [session, channel].

    NaN where a session lacks its FLAIR. Nothing of w096 enters.
    """
    column = CHANNELS.index("flair")
    return np.concatenate(
        [
            image_statistics(flair[row].astype(np.float64), spacing)
            if present[row, column]
            else np.full(len(IMAGE_STATISTICS), np.nan)
            for row in map(SESSIONS.index, INPUT_SESSIONS)
        ]
    )


def image_statistics(flair: Floats, spacing: tuple[float, float, float]) -> Floats:
    """The numbers of `APPEARANCE` for one image [s, h, w], voxels of `spacing` mm."""
    head = flair > flair.mean()  # leaves the air out
    tissue = flair[head] if head.any() else flair.ravel()
    spread = float(tissue.std()) + 1e-9
    curved = np.abs(np.diff(flair, n=2, axis=2))[head[:, :, 1:-1]]
    return np.array(
        [
            *np.quantile(tissue, QUANTILES),
            spread,
            flair[~head].mean(),
            np.log1p(head.sum() * float(np.prod(spacing))),
            np.mean([np.abs(np.diff(flair, axis=axis)).mean() for axis in (1, 2)]) / spread,
            np.median(curved) / spread if curved.size else 0.0,
            np.mean([_lag1_autocorrelation(flair, axis) for axis in (1, 2)]),
            _lag1_autocorrelation(flair, 0),
            *(_shade(flair, head, axis) / spread for axis in range(3)),
        ]
    )


def _lag1_autocorrelation(flair: Floats, axis: int) -> float:
    """Correlation of neighbouring voxels along an axis; 0 where the image is flat."""
    along = np.moveaxis(flair, axis, 0)
    low, high = (part - part.mean() if part.size else part for part in (along[:-1], along[1:]))
    norm = np.sqrt(np.vdot(low, low) * np.vdot(high, high))
    return float(np.vdot(low, high) / norm) if norm > 0 else 0.0


def _shade(flair: Floats, head: Bools, axis: int) -> float:
    """Mean intensity of the head's second half along an axis minus that of its first."""
    halves = zip(np.array_split(flair, 2, axis), np.array_split(head, 2, axis), strict=True)
    first, second = (float(part[inside].mean()) if inside.any() else 0.0 for part, inside in halves)
    return second - first
