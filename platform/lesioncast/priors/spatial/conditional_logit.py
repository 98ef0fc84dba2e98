"""Conditional logistic regression: which voxels of a case hold its lesions, given how many.

The likelihood of a case with lesion voxels y is prod over v in y of exp(w f(v)) / sum over the
brain of exp(w f) (McFadden 1974). The sum is estimated from controls that are drawn with a known
probability (importance sampling), so that it needs no features elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from lesioncast.arrays import Float32s, Floats, Ints


@dataclass(frozen=True)
class Controls:
    """Sampled voxels of all cases, with k features."""

    #: Features, [k, control], in the order of the cases.
    features: Float32s
    #: Logarithm of 1 / (controls of the case x probability of drawing this one), [control].
    log_weight: Float32s
    #: First row of each case, [case].
    first: Ints


@dataclass(frozen=True)
class LinearModel:
    """Weights of standardised features: log density = (f - centre) / scale . weight + constant."""

    centre: Float32s
    scale: Float32s
    weight: Float32s

    def score(self, features: Float32s) -> Float32s:
        """Return the log density of voxels [n] up to a constant from features [k, n]."""
        weight = self.weight / self.scale
        return np.asarray(weight @ features - self.centre @ weight)


def fit_conditional_logit(
    controls: Controls, lesions: Floats, voxels: Ints, *, penalty: float, iterations: int
) -> LinearModel:
    """Maximise the mean log likelihood of a lesion voxel, less penalty |w|^2 / 2.

    `lesions` [case, k] are the sums of the features over each case's lesion voxels, whose number is
    `voxels` [case]. The objective is concave; L-BFGS maximises it.
    """
    centre = controls.features.mean(axis=1)
    scale = controls.features.std(axis=1)
    scale = np.where(scale > 1e-6, scale, 1.0).astype(np.float32)
    standard = (controls.features - centre[:, None]) / scale[:, None]
    found = (lesions - voxels[:, None] * centre) / scale
    total = float(voxels.sum())
    mean_found = found.sum(axis=0) / total
    share = voxels / total
    sizes = np.diff(controls.first, append=standard.shape[1])

    def negative(weight: Floats) -> tuple[float, Floats]:
        score = weight.astype(np.float32) @ standard + controls.log_weight
        top = np.maximum.reduceat(score, controls.first)
        likelihood = np.exp(score - np.repeat(top, sizes), dtype=np.float64)
        sums = np.add.reduceat(likelihood, controls.first)
        expected = likelihood * np.repeat(share / sums, sizes)
        value = share @ (np.log(sums) + top) - mean_found @ weight
        slope = standard @ expected.astype(np.float32) - mean_found
        return (
            float(value + penalty * weight @ weight / 2),
            np.asarray(slope + penalty * weight, np.float64),
        )

    start = np.zeros(len(standard))
    best = optimize.minimize(
        negative, start, jac=True, method="L-BFGS-B", options={"maxiter": iterations}
    )
    return LinearModel(np.asarray(centre, np.float32), scale, np.asarray(best.x, np.float32))
