"""Measure all features by which a patient is compared with those that a model was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.imaging.channels import BASELINE, CHANNELS, CURRENT, SESSIONS
from lesioncast.imaging.features.appearance import APPEARANCE_FEATURES, appearance_features
from lesioncast.imaging.features.head_features import HEAD_FEATURES, head_features
from lesioncast.imaging.features.image_features import IMAGE_FEATURES, CaseImages, image_features
from lesioncast.imaging.features.session_change import CHANGE_FEATURES, change_features
from lesioncast.imaging.features.tissue_contrast import (
    CONTRAST_FEATURES,
    RawRange,
    contrast_features,
)
from storage import VisitSchedule

INPUT_SESSIONS = (BASELINE, CURRENT)
PATIENT_FEATURES = (
    *APPEARANCE_FEATURES,
    *(f"{name}_{session}" for session in INPUT_SESSIONS for name in HEAD_FEATURES),
    *(f"{name}_{session}" for session in INPUT_SESSIONS for name in CONTRAST_FEATURES),
    *IMAGE_FEATURES[:-1],  # all but the gain of FLAIR, of which the changes know both signs
    *CHANGE_FEATURES,
)
"""Names of the features; those of one session end with it."""
BEFORE_TREATMENT: Bools = np.array([name.endswith(f"_{BASELINE}") for name in PATIENT_FEATURES])
"""True for each feature of baseline alone, [feature]."""

_OF_SCANNER = (
    *("intensity_", "dark_", "grey_", "fluid_", "rim"),
    *("edges", "noise", "smooth_"),
)
FEATURE_GROUPS: tuple[Ints, ...] = (
    np.arange(len(PATIENT_FEATURES)),
    np.flatnonzero([name.startswith(_OF_SCANNER) for name in PATIENT_FEATURES]),
)
"""Columns of the features that are judged together: all, and those of the scanner."""


def patient_features(
    arrays: CaseImages, spacing: tuple[float, float, float], limits: Mapping[str, RawRange]
) -> Floats:
    """Return the features named in `PATIENT_FEATURES` of one case, [feature]; NaN where missing.

    `spacing` (s, h, w) is in mm, `limits` holds the raw range of FLAIR by session. Images of the
    outcome are not read.
    """
    column = CHANNELS.index("flair")
    head, contrast = [], []
    for session in INPUT_SESSIONS:
        row = SESSIONS.index(session)
        if arrays.present[row, column] and session in limits:
            head.append(head_features(arrays.flair[row], spacing))
            contrast.append(
                contrast_features(arrays.flair[row], arrays.parcellation, limits[session])
            )
        else:
            head.append(np.full(len(HEAD_FEATURES), np.nan))
            contrast.append(np.full(len(CONTRAST_FEATURES), np.nan))
    return np.concatenate(
        [
            appearance_features(arrays.flair, arrays.present, spacing),
            *head,
            *contrast,
            image_features(arrays, spacing)[:-1],
            change_features(arrays, spacing),
        ]
    )


@dataclass(frozen=True)
class _Wording:
    """How a feature is told: its name, and the unit of exp(value) or exp(value) - 1."""

    name: str
    unit: str = ""
    scale: str = "linear"

    def number(self, value: float) -> str:
        """Return a value with its unit."""
        if self.scale == "log":
            value = float(np.exp(value))
        elif self.scale == "log1p":
            value = float(np.expm1(value))
        digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return f"{digits} {self.unit}".strip()


_INTENSITY = {
    f"intensity_{share}": _Wording(f"FLAIR intensity, {percent} % quantile")
    for share, percent in (("0.05", 5), ("0.25", 25), ("0.50", 50), ("0.75", 75), ("0.95", 95))
}
_WORDINGS = _INTENSITY | {
    "intensity_sd": _Wording("spread of FLAIR intensities"),
    "head_volume": _Wording("volume that FLAIR shows", "mm3", "log1p"),
    "edges": _Wording("strength of edges in FLAIR"),
    "noise": _Wording("noise of FLAIR"),
    "smooth_in_plane": _Wording("likeness of neighbouring voxels in plane"),
    "smooth_across": _Wording("likeness of neighbouring slices"),
    "shade_up": _Wording("brightness of upper minus lower half"),
    "shade_forward": _Wording("brightness of front minus back"),
    "shade_right": _Wording("brightness of right minus left side"),
    "extent_forward": _Wording("length of the head from back to front", "mm", "log"),
    "extent_right": _Wording("width of the head", "mm", "log"),
    "rim": _Wording("brightness of the outer 6 mm relative to the rest"),
    "dark_share": _Wording("share of dark tissue"),
    "dark_over_bright": _Wording("darkest tissue relative to the brightest"),
    "grey_over_white": _Wording("cortex relative to white matter in FLAIR"),
    "fluid_over_white": _Wording("fluid relative to white matter in FLAIR"),
    "noise_in_white": _Wording("noise in white matter relative to its signal"),
    "t2_volume": _Wording("volume of T2 lesions", "mm3", "log1p"),
    "gad_volume": _Wording("volume of enhancing lesions", "mm3", "log1p"),
    "net2_volume": _Wording("volume of new and enlarging lesions", "mm3", "log1p"),
    "t2_count": _Wording("number of T2 lesions", "", "log1p"),
    "gad_count": _Wording("number of enhancing lesions", "", "log1p"),
    "net2_count": _Wording("number of new and enlarging lesions", "", "log1p"),
    "flair_correlation": _Wording("correlation of the two FLAIR images"),
    "flair_change": _Wording("median change of FLAIR between the sessions"),
    "flair_rise_minus_fall": _Wording(
        "volume where FLAIR rose relative to where it fell", "", "log"
    ),
    "t2_lost": _Wording("T2 lesion that vanished between the sessions", "mm3", "log1p"),
    "t2_gained": _Wording("T2 lesion that appeared between the sessions", "mm3", "log1p"),
    "net2_outside_t2": _Wording("new lesion outside the current T2 mask", "mm3", "log1p"),
    "net2_in_older_t2": _Wording("new lesion inside the T2 mask of baseline", "mm3", "log1p"),
    "net2_rise": _Wording("change of FLAIR in new lesions, in standard deviations"),
}


@dataclass(frozen=True)
class FeatureInWords:
    """A feature, its value and the range of nearly all patients of training, in words."""

    name: str
    value: str
    low: str
    high: str


def in_words(
    column: int, value: float, low: float, high: float, *, visits: VisitSchedule
) -> FeatureInWords:
    """Return a feature and three of its values in words; sessions have the trial's own labels."""
    name = PATIENT_FEATURES[column]
    session = next((one for one in INPUT_SESSIONS if name.endswith(f"_{one}")), None)
    wording = _WORDINGS[name if session is None else name.removesuffix(f"_{session}")]
    at = "" if session is None else f" at {visits.label(session)}"
    return FeatureInWords(
        f"{wording.name}{at}", wording.number(value), wording.number(low), wording.number(high)
    )
