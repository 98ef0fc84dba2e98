"""Compare the masks of an ensemble with the observed mask voxel by voxel and lesion by lesion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats, Ints, LabelMap, Mask
from lesioncast.evaluation.metrics.detection import Detection, match_lesions
from lesioncast.imaging.regions import lesions_in_regions


@dataclass(frozen=True)
class ObservedMask:
    """Observed outcome of a case at outcome."""

    #: NET2 mask [s, h, w].
    net2: Mask
    #: FreeSurfer ids [s, h, w]; None if the case has no parcellation.
    parcellation: LabelMap | None = None


@dataclass(frozen=True)
class MaskComparison:
    """Agreement of k sampled masks with the observed mask of the same case."""

    #: Lesions detected by each sample, [k].
    per_sample: tuple[Detection, ...]
    #: Lesions detected by the majority mask: voxels that at least half of the samples contain.
    majority: Detection
    #: Mean of 1 - IoU between a sample and the observed mask.
    distance: float
    #: Mean of 1 - IoU between two samples.
    diversity: float
    #: Number of voxels that 0 .. k samples contain, [k + 1].
    voxels: Ints
    #: The same for the voxels that are lesion in the observed mask, [k + 1].
    lesion_voxels: Ints
    #: True where a sample has a lesion in a region, [k, region]; None without a parcellation.
    regions: Bools | None

    @property
    def energy(self) -> float:
        """Squared generalised energy distance between the ensemble and the observed mask.

        2 E d(S, Y) - E d(S, S') with d = 1 - IoU (Kohl et al. 2018). There is one observed mask,
        so its term E d(Y, Y') is 0. Pairs of samples are distinct, as in `scores.crps`.
        """
        return 2 * self.distance - self.diversity


def compare_masks(masks: Bools, observed: ObservedMask, spacing: Sequence[float]) -> MaskComparison:
    """Compare sampled `masks` [k, s, h, w] of one case with its observed mask.

    The masks must be forecasts for the arm that the case received. `spacing` (s, h, w) is in mm.
    """
    samples_at_voxel = masks.sum(axis=0)
    levels = len(masks) + 1
    distances = jaccard_distances(np.concatenate([observed.net2[None], masks]))
    parcellation = observed.parcellation
    return MaskComparison(
        per_sample=tuple(match_lesions(mask, observed.net2, spacing) for mask in masks),
        majority=match_lesions(2 * samples_at_voxel >= len(masks), observed.net2, spacing),
        distance=float(distances[0, 1:].mean()),
        diversity=mean_off_diagonal(distances[1:, 1:]),
        voxels=np.bincount(samples_at_voxel.ravel(), minlength=levels),
        lesion_voxels=np.bincount(samples_at_voxel[observed.net2], minlength=levels),
        regions=None if parcellation is None else lesions_in_regions(masks, parcellation),
    )


def jaccard_distances(masks: Bools) -> Floats:
    """Return 1 - IoU of each pair of `masks` [n, s, h, w], [n, n]; 0 for two empty masks."""
    flat = masks.reshape(len(masks), -1)
    # Voxels that no mask contains add nothing; few voxels remain, so the product below is small.
    flat = flat[:, flat.any(axis=0)].astype(np.float32)
    shared = (flat @ flat.T).astype(np.float64)
    size = np.diag(shared)
    union = size[:, None] + size[None, :] - shared
    return 1 - np.divide(shared, union, out=np.ones_like(shared), where=union > 0)


def mean_off_diagonal(matrix: Floats) -> float:
    """Return the mean over distinct pairs of a symmetric `matrix` [k, k], k at least 2."""
    k = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (k * (k - 1)))
