"""What is kept of each case: scores of every map, and of every method's sampled masks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s, Floats, Ints
from lesioncast.evaluation.metrics.mask_comparison import MaskComparison
from lesioncast.evaluation.where.atlas import Voxels
from lesioncast.evaluation.where.map_scores import MapScore
from lesioncast.forecasting.ensemble import ExpectedOutcomes

EVEN, ATLAS, RINGS, NETWORKS, SAMPLES, EXACT = (
    "even", "atlas", "atlas_rings", "networks", "samples", "exact",
)  # fmt: skip
OTHER_IMAGES, OTHER_HISTORY = "networks_other_images", "networks_other_history"
SPATIAL_PRIOR = "spatial_prior"
PRIOR_OTHER_IMAGES = "spatial_prior_other_images"
PRIOR_OTHER_HISTORY = "spatial_prior_other_history"
CLIMATOLOGY = "climatology"
INDEPENDENT_VOXELS, STORED_LESIONS = "independent_voxels", "stored_lesions"
MAP_LABELS = {
    EVEN: "even brain",
    ATLAS: "atlas of training lesions",
    RINGS: "atlas x distance to older lesions",
    SPATIAL_PRIOR: "spatial prior alone",
    NETWORKS: "networks, marginal map",
    SAMPLES: "networks, share of samples",
    EXACT: "exact law of the simulation",
}
RELIANCE_LABELS = {
    NETWORKS: "own images",
    OTHER_HISTORY: "own FLAIR, lesion masks of another patient",
    OTHER_IMAGES: "images of another patient",
    SPATIAL_PRIOR: "spatial prior alone, own images",
    PRIOR_OTHER_HISTORY: "spatial prior alone, own anatomy, lesion masks of another patient",
    PRIOR_OTHER_IMAGES: "spatial prior alone, images of another patient",
}
# The map from own images that each map from exchanged ones is compared with.
OWN_IMAGES = {
    OTHER_HISTORY: NETWORKS,
    OTHER_IMAGES: NETWORKS,
    PRIOR_OTHER_HISTORY: SPATIAL_PRIOR,
    PRIOR_OTHER_IMAGES: SPATIAL_PRIOR,
}
# Maps whose difference is reported, in bundles with a spatial prior.
COMPARED_MAPS = ((NETWORKS, SPATIAL_PRIOR), (SPATIAL_PRIOR, RINGS), (EXACT, SPATIAL_PRIOR))
SAMPLE_LABELS = {
    NETWORKS: "networks",
    INDEPENDENT_VOXELS: "independent voxels by the prior's map",
    STORED_LESIONS: "lesions of training patients, placed by the prior's map",
    CLIMATOLOGY: "training patients of the arm",
    EXACT: "exact law of the simulation",
}


@dataclass(frozen=True)
class WhereTask:
    """A test case to score, and what its samples and baselines need.

    `sampled` and `climatology` are flat lesion voxels of masks. `other` is the case whose images
    replace its own; None leaves that out. `score_samples` is False for a case whose maps alone are
    scored. `expected` is the case's forecast in closed form, None for models that only sample, and
    after the opening. `keep_maps` keeps the maps for a figure, which states `p_active`.
    """

    case: int
    sampled: tuple[Voxels, ...]
    climatology: tuple[Voxels, ...]
    other: int | None = None
    score_samples: bool = True
    keep_maps: bool = False
    p_active: float = np.nan
    expected: ExpectedOutcomes | None = None


@dataclass(frozen=True)
class SampleScores:
    """Scores of one method's sampled masks of a case.

    `kernel` is at each of SMOOTHINGS_MM. `voxels` is the mean number of lesion voxels of a sample.
    """

    kernel: Floats
    comparison: MaskComparison
    voxels: float


@dataclass(frozen=True)
class CaseMaps:
    """Maps of one case for a figure, as densities relative to the even brain, [s, h, w] each.

    `samples` are flat lesion voxels of the case's sampled masks, `p_active` is its forecast.
    """

    maps: Mapping[str, Float32s]
    brain: npt.NDArray[np.bool_]
    samples: tuple[Voxels, ...]
    p_active: float


@dataclass(frozen=True)
class CaseWhere:
    """What was measured of one test case.

    `maps` holds the score of each map and of the maps from other images; it is empty without new
    lesions. `samples` is empty for a case whose samples are not scored. `kernel_of_empty` is the
    kernel score of a forecast without lesions. `regions` are the forecast's regional risks in
    closed form; empty where it has none.
    """

    case: int
    arm: int
    brain_voxels: int
    lesion_voxels: int
    lesion_voxels_outside: int
    maps: Mapping[str, MapScore]
    samples: Mapping[str, SampleScores]
    kernel_of_empty: Floats
    figure: CaseMaps | None = None
    regions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WhereMeasurements:
    """What was measured of all test cases.

    `cases` are in the order of the test cases. `mean_voxels` [arm] is the mean number of new-lesion
    voxels of the arm's active training cases. `ring_rates` [ring] are those that were fitted.
    """

    cases: tuple[CaseWhere, ...]
    mean_voxels: Floats
    ring_rates: Floats

    @property
    def lesion_voxels(self) -> Ints:
        """Return the number of new-lesion voxels of each case, [n]."""
        voxels = [case.lesion_voxels + case.lesion_voxels_outside for case in self.cases]
        return np.array(voxels, np.int64)
