"""The masks of one ensemble beside the observed one: where, and not only how many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.metrics.detection import Detection, match_lesions
from lesioncast.imaging.lesions import Mask
from lesioncast.imaging.regions import lesions_in_regions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ObservedMask:
    """What was observed of a case at w096: NET2 [s, h, w], and its parcellation if it has one."""

    net2: Mask
    parcellation: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True)
class MaskComparison:
    """What is kept of k masks beside the observed one.

    `each` [k] is the detection by every sample, `majority` that by the voxels which at least half
    of the samples hold. `distance` is the mean of 1 - IoU between a sample and the observed mask,
    `diversity` that between two samples. `voxels` and `lesion_voxels` [k + 1] count the voxels that
    0 .. k samples hold, all and those observed as lesion. `regions` [k, region] says where each
    sample has a lesion; None without a parcellation.
    """

    per_sample: tuple[Detection, ...]
    majority: Detection
    distance: float
    diversity: float
    voxels: Ints
    lesion_voxels: Ints
    regions: npt.NDArray[np.bool_] | None

    @property
    def energy(self) -> float:
        """Squared generalised energy distance between the ensemble and the observed mask.

        2 E d(S, Y) - E d(S, S') with d = 1 - IoU (Kohl et al. 2018); the one observed mask is at
        distance 0 from itself. Pairs are distinct, as in `metrics.crps`.
        """
        return 2 * self.distance - self.diversity


def compare_masks(masks: Masks, observed: ObservedMask, spacing: Sequence[float]) -> MaskComparison:
    """`masks` [k, s, h, w] of one case on the arm that it received, voxels of `spacing` mm."""
    held = masks.sum(axis=0)
    levels = len(masks) + 1
    between = jaccard_distances(np.concatenate([observed.net2[None], masks]))
    return MaskComparison(
        per_sample=tuple(match_lesions(mask, observed.net2, spacing) for mask in masks),
        majority=match_lesions(2 * held >= len(masks), observed.net2, spacing),
        distance=float(between[0, 1:].mean()),
        diversity=mean_off_diagonal(between[1:, 1:]),
        voxels=np.bincount(held.ravel(), minlength=levels),
        lesion_voxels=np.bincount(held[observed.net2], minlength=levels),
        regions=None
        if observed.parcellation is None
        else lesions_in_regions(masks, observed.parcellation),
    )


def jaccard_distances(masks: Masks) -> Floats:
    """1 - IoU of each pair of `masks` [n, s, h, w], [n, n]; 0 between two empty masks."""
    flat = masks.reshape(len(masks), -1)
    flat = flat[:, flat.any(axis=0)].astype(np.float32)  # few voxels are a lesion in any mask
    shared = (flat @ flat.T).astype(np.float64)
    size = np.diag(shared)
    union = size[:, None] + size[None, :] - shared
    return 1 - np.divide(shared, union, out=np.ones_like(shared), where=union > 0)


def mean_off_diagonal(matrix: Floats) -> float:
    """Mean over distinct pairs of a symmetric `matrix` [k, k], k at least 2."""
    k = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (k * (k - 1)))
