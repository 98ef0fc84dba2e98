"""Measure what changed from baseline to the current session, and whether its sign is that of time.

Lesions appear more often than they vanish, so a patient whose two sessions were exchanged differs
from all others in these features. Scans of another head or another place do so, too.
"""

import numpy as np

from lesioncast.arrays import Bools, Floats, Mask
from lesioncast.imaging.channels import BASELINE, CHANNELS, CURRENT, SESSIONS
from lesioncast.imaging.features.image_features import CaseImages, mask_of
from storage.layout import head_mask

CHANGE_FEATURES = (
    "flair_correlation",
    "flair_change",
    "flair_rise_minus_fall",
    "t2_lost",
    "t2_gained",
    "net2_outside_t2",
    "net2_in_older_t2",
    "net2_rise",
)
# Robust standard deviations above or below the median change that count as a rise or a fall.
_OUTLIER_SD = 3.0
# Volumes far below this rise and fall by noise alone.
_NOISE_MM3 = 300.0
# A robust standard deviation of the change below this, in intensities from -1 to 1, is taken as it:
# two images that are equal in most voxels would otherwise have none.
_MIN_SD = 1e-3


def change_features(arrays: CaseImages, spacing: tuple[float, float, float]) -> Floats:
    """Return the features named in `CHANGE_FEATURES`, [feature]; NaN where a channel is missing.

    In order: Pearson correlation of the two FLAIR images over the head; median difference current -
    baseline; log(300 mm3 + volume that rose) - log(300 mm3 + volume that fell); log(1 + mm3) of
    T2 lesion that vanished and that appeared, of NET2 outside the current T2 mask and of NET2
    inside the T2 mask of baseline; mean change of FLAIR in NET2, in robust standard deviations of
    all changes.
    """
    voxel = float(np.prod(spacing))
    before, after = (mask_of(arrays, session, "t2") for session in (BASELINE, CURRENT))
    net2 = mask_of(arrays, CURRENT, "net2")
    change = _standardised_change(arrays)
    return np.array(
        [
            *_flair_features(arrays, change, voxel),
            _log_volume(before, after, voxel),
            _log_volume(after, before, voxel),
            _log_volume(net2, after, voxel),
            np.nan if net2 is None or before is None else _log_mm3(net2 & before, voxel),
            _mean_inside(change, net2),
        ]
    )


def _standardised_change(arrays: CaseImages) -> Floats | None:
    """Return current - baseline FLAIR in robust standard deviations, NaN outside the head."""
    column = CHANNELS.index("flair")
    rows = [SESSIONS.index(session) for session in (BASELINE, CURRENT)]
    if not all(arrays.present[row, column] for row in rows):
        return None
    before, after = (arrays.flair[row].astype(np.float64) for row in rows)
    inside = head_mask(before) & head_mask(after)
    if not inside.any():
        return None
    change = np.where(inside, after - before, np.nan)
    change -= np.nanmedian(change)
    # 1.4826 turns the median absolute deviation into the standard deviation of a normal variable.
    standardised: Floats = change / max(_MIN_SD, 1.4826 * float(np.nanmedian(np.abs(change))))
    return standardised


def _flair_features(arrays: CaseImages, change: Floats | None, voxel: float) -> list[float]:
    """Return correlation, median change, and rise minus fall of FLAIR; NaN without both images."""
    if change is None:
        return [np.nan] * 3
    inside: Bools = np.isfinite(change)
    before, after = (
        arrays.flair[SESSIONS.index(session)][inside].astype(np.float64)
        for session in (BASELINE, CURRENT)
    )
    varies = before.std() > 0 and after.std() > 0
    rise, fall = (
        np.log(_NOISE_MM3 + voxel * (np.nan_to_num(sign * change) > _OUTLIER_SD).sum())
        for sign in (1.0, -1.0)
    )
    return [
        float(np.corrcoef(before, after)[0, 1]) if varies else 0.0,
        float(np.median(after - before)),
        float(rise - fall),
    ]


def _log_volume(mask: Mask | None, other: Mask | None, voxel: float) -> float:
    """Return log(1 + mm3) of a mask outside another one; NaN if one of them is missing."""
    return np.nan if mask is None or other is None else _log_mm3(mask & ~other, voxel)


def _log_mm3(mask: Mask, voxel: float) -> float:
    return float(np.log1p(voxel * mask.sum()))


def _mean_inside(change: Floats | None, mask: Mask | None) -> float:
    """Return the mean change in a mask; NaN if there is no mask, or none of it in the head."""
    if change is None or mask is None:
        return np.nan
    values = change[mask & np.isfinite(change)]
    return float(values.mean()) if values.size else np.nan
