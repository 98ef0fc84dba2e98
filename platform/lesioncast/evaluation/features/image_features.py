"""A few numbers read off a case's images and masks: what a simple baseline may know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.features.appearance import appearance_features
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask
from lesioncast.imaging.channels import CHANNELS, MASKS, SESSIONS
from lesioncast.imaging.lesions import LesionCounts, components, count_lesions
from lesioncast.imaging.regions import lesions_in_regions

FLAIR = CHANNELS.index("flair")
NEW_SIGNAL = 3.0  # robust standard deviations above the usual w048 - w000 difference
LESION_CHANNELS = (
    ("w000", "t2"),
    ("w048", "t2"),
    ("w000", "gad"),
    ("w048", "gad"),
    ("w048", "net2"),
)
IMAGE_FEATURES = (
    *(f"{channel}_volume_{session}" for session, channel in LESION_CHANNELS),
    *(f"{channel}_count_{session}" for session, channel in LESION_CHANNELS),
    "flair_gain",
)
BASELINE_FEATURES = tuple(
    place for place, name in enumerate(IMAGE_FEATURES) if name.endswith("_w000")
)


class CaseImages(Protocol):
    """What is read of a case: shapes as in `lesioncast.imaging.channels.encode`."""

    @property
    def flair(self) -> npt.NDArray[np.float16]: ...
    @property
    def masks(self) -> npt.NDArray[np.uint8]: ...
    @property
    def parcellation(self) -> npt.NDArray[np.int16]: ...
    @property
    def present(self) -> npt.NDArray[np.bool_]: ...


@dataclass(frozen=True)
class CaseMeasurements:
    """One case: its scalars [scalar] as in `SCALARS` and its observed w096 lesions, if any.

    `earlier` are the new lesions at w048, `regions` [region] says in which regions those at w096
    lie; both None where the case does not show it. `looks` [look] is how its images look.
    """

    case: int
    image_features: npt.NDArray[np.float64]
    outcome: LesionCounts | None
    appearance: npt.NDArray[np.float64]
    net2_count_w048: int | None = None
    regions: npt.NDArray[np.bool_] | None = None


def measure_case(
    case: int, arrays: CaseImages, spacing: tuple[float, float, float]
) -> CaseMeasurements:
    """The scalars and the outcome of one case, voxels of `spacing` (s, h, w) mm."""
    observed = observed_outcome(arrays)
    earlier = _mask(arrays, "w048", "net2")
    return CaseMeasurements(
        case=case,
        image_features=image_features(arrays, spacing),
        outcome=None if observed is None else count_lesions(observed.net2, spacing),
        net2_count_w048=None if earlier is None else components(earlier)[1],
        regions=None
        if observed is None or observed.parcellation is None
        else lesions_in_regions(observed.net2[None], observed.parcellation)[0],
        appearance=appearance_features(arrays.flair, arrays.present, spacing),
    )


def observed_outcome(arrays: CaseImages) -> ObservedMask | None:
    """The NET2 mask at w096 with the parcellation, if any; None where it was not observed."""
    net2 = _mask(arrays, "w096", "net2")
    if net2 is None:
        return None
    return ObservedMask(net2, arrays.parcellation if arrays.parcellation.any() else None)


def image_features(
    arrays: CaseImages, spacing: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """log(1 + volume in mm3) and log(1 + count) of the masks and the FLAIR gain, [scalar].

    NaN where a case lacks the channel. Nothing of w096 enters.
    """
    voxel = float(np.prod(spacing))
    values = [
        *(
            _of_mask(_mask(arrays, *key), lambda mask: voxel * float(mask.sum()))
            for key in LESION_CHANNELS
        ),
        *(
            _of_mask(_mask(arrays, *key), lambda mask: components(mask)[1])
            for key in LESION_CHANNELS
        ),
        _flair_gain(arrays, voxel),
    ]
    return np.log1p(np.array(values, np.float64))


def _mask(arrays: CaseImages, session: str, channel: str) -> npt.NDArray[np.bool_] | None:
    row = SESSIONS.index(session)
    if not arrays.present[row, CHANNELS.index(channel)]:
        return None
    return np.asarray(arrays.masks[row, MASKS.index(channel)], bool)


def _of_mask(
    mask: npt.NDArray[np.bool_] | None, number: Callable[[npt.NDArray[np.bool_]], float]
) -> float:
    return np.nan if mask is None else number(mask)


def _flair_gain(arrays: CaseImages, voxel: float) -> float:
    """Summed rise of FLAIR from w000 to w048 where it is unusual, in mm3 x robust sd.

    The scanner's overall change between the sessions is taken out as the median over the
    foreground (above the mean intensity, which leaves the air out).
    """
    first, second = SESSIONS.index("w000"), SESSIONS.index("w048")
    if not (arrays.present[first, FLAIR] and arrays.present[second, FLAIR]):
        return np.nan
    before, after = (arrays.flair[row].astype(np.float32) for row in (first, second))
    foreground = (before > before.mean()) & (after > after.mean())
    rise = (after - before)[foreground]
    if not rise.size:
        return 0.0
    rise -= np.median(rise)
    scale = 1.4826 * np.median(np.abs(rise)) + 1e-6
    return float(voxel * np.clip(rise / scale - NEW_SIGNAL, 0, None).sum())
