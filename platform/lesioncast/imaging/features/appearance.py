"""Measure appearance features of a case's FLAIR that depend on the scanner more than on lesions.

The features describe intensity, texture and shading at baseline and at the current session.
A classifier that can tell the trial or the arm from them shows that a model could use the scanner
as a shortcut.
"""

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Floats
from lesioncast.imaging.channels import CHANNELS, SESSIONS
from storage.layout import head_mask

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IMAGE_STATISTICS = (
    *(f"intensity_{quantile:.2f}" for quantile in QUANTILES),
    "intensity_sd",
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
    """Return the features named in `APPEARANCE_FEATURES` of one case, [feature].

    `flair` is [session, s, h, w], `present` [session, channel] and `spacing` (s, h, w) in mm.
    Features of a session without FLAIR are NaN. Images of the outcome are not read.
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
    """Return the numbers named in `IMAGE_STATISTICS` of one image [s, h, w]."""
    head = head_mask(flair)
    tissue = flair[head] if head.any() else flair.ravel()
    spread = float(tissue.std()) + 1e-9
    # The second difference of noise is large, that of smooth tissue small.
    second_difference = np.abs(np.diff(flair, n=2, axis=2))[head[:, :, 1:-1]]
    return np.array(
        [
            *np.quantile(tissue, QUANTILES),
            spread,
            np.log1p(head.sum() * float(np.prod(spacing))),
            np.mean([np.abs(np.diff(flair, axis=axis)).mean() for axis in (1, 2)]) / spread,
            np.median(second_difference) / spread if second_difference.size else 0.0,
            np.mean([_lag1_autocorrelation(flair, axis) for axis in (1, 2)]),
            _lag1_autocorrelation(flair, 0),
            *(_shade(flair, head, axis) / spread for axis in range(3)),
        ]
    )


def _lag1_autocorrelation(flair: Floats, axis: int) -> float:
    """Return the correlation of neighbouring voxels along an axis; 0 for a constant image."""
    along = np.moveaxis(flair, axis, 0)
    low, high = (part - part.mean() if part.size else part for part in (along[:-1], along[1:]))
    norm = np.sqrt(np.vdot(low, low) * np.vdot(high, high))
    return float(np.vdot(low, high) / norm) if norm > 0 else 0.0


def _shade(flair: Floats, head: Bools, axis: int) -> float:
    """Return the head's mean intensity in the second half of an axis minus that in the first."""
    halves = zip(np.array_split(flair, 2, axis), np.array_split(head, 2, axis), strict=True)
    first, second = (float(part[inside].mean()) if inside.any() else 0.0 for part, inside in halves)
    return second - first
