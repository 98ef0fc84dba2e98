"""Draw the control voxels of a training case, more often where lesions are likely."""

from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Float32s, Floats, Mask, Spacing
from lesioncast.priors.spatial.distance import distance_to
from lesioncast.priors.spatial.inputs import Places

# Shares of the controls: even over the brain, by the atlas, and near older lesions.
EVEN, ATLAS, NEAR = 0.3, 0.4, 0.3
NEAR_MM = 5.0


@dataclass(frozen=True)
class DrawnControls:
    """Flat indices of sampled voxels, [n], and log(1 / (n x their probability)), [n]."""

    at: Places
    log_weight: Float32s


def draw_controls(
    rng: np.random.Generator,
    brain: Mask,
    atlas: Float32s,
    older: Mask,
    *,
    number: int,
    spacing: Spacing,
) -> DrawnControls:
    """Draw voxels with replacement, also outside the brain where the atlas has lesions.

    The sum over all voxels of g(v) is about the sum over the controls of exp(log_weight) g(v).
    `atlas` [s, h, w] is a density; `older` [s, h, w] are older lesions.
    """
    # Just beyond, so that the distance itself is still told from all that is further.
    near = brain & (distance_to(older, spacing, furthest=NEAR_MM + 1) <= NEAR_MM)
    shares = ((EVEN, _even(brain)), (ATLAS, atlas.ravel()), (NEAR, _even(near)))
    weights = sum(share * density for share, density in shares)
    probability = np.asarray(weights, np.float64)
    probability /= probability.sum()
    at = rng.choice(len(probability), number, p=probability)
    log_weight = -np.log(number * probability[at])
    return DrawnControls(at, log_weight.astype(np.float32))


def _even(mask: Mask) -> Floats:
    """Return the even density over a mask, [voxel]; zeros if it is empty."""
    return mask.ravel() / max(int(mask.sum()), 1)
