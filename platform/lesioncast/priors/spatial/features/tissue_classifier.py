"""Tell tissue and lesions from FLAIR, for patients without a parcellation or without masks.

A perceptron with one hidden layer looks at a voxel's intensity, its neighbours a few millimetres
away, and its surroundings at several widths. It is fitted to the parcellations and T2 masks of
training cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lesioncast.arrays import Float32s, Ints, Mask, Spacing
from lesioncast.priors.spatial.features.curves import join
from lesioncast.priors.spatial.features.tissue import CLASSES
from lesioncast.priors.spatial.inputs import Places
from lesioncast.priors.spatial.smoothing import shift, smooth

HIDDEN = 48
# Offsets (s, h, w) in mm of the neighbours whose intensity is read.
NEIGHBOURS_MM = (
    (3, 0, 0), (-3, 0, 0),
    (0, 3, 0), (0, -3, 0), (0, 0, 3), (0, 0, -3),
    (0, 3, 3), (0, 3, -3), (0, -3, 3), (0, -3, -3),
    (0, 6, 0), (0, -6, 0), (0, 0, 6), (0, 0, -6),
)  # fmt: skip
_STEPS, _ROWS, _LEARNING_RATE, _BETAS = 600, 2048, 8e-3, (0.9, 0.999)
# Standardised inputs beyond this are clipped: a patient may differ from all of training.
_RANGE = 4.0


@dataclass(frozen=True)
class SeenTissue:
    """What FLAIR shows, each 0 outside the brain."""

    #: Probability of each tissue class, [class, s, h, w].
    classes: Float32s
    #: Probability of a T2 lesion, [s, h, w].
    lesions: Float32s


@dataclass(frozen=True)
class TissueClassifier:
    """Weights of the perceptron, and where each tissue lies in training cases."""

    #: Share of training cases with each class at a voxel, [class, s, h, w].
    label_atlas: Float32s
    #: Mean and standard deviation of the inputs, [input] each.
    centre: Float32s
    scale: Float32s
    #: Layers: [input, hidden], [hidden], [hidden, class + 1], [class + 1]. The last output is the
    #: log odds of a lesion.
    hidden_weight: Float32s
    hidden_bias: Float32s
    output_weight: Float32s
    output_bias: Float32s

    def classify(self, image: Float32s, brain: Mask, spacing: Spacing) -> SeenTissue:
        """Return what FLAIR shows in the brain [s, h, w].

        `image` [s, h, w] is FLAIR in units of the patient's own tissue.
        """
        at = np.flatnonzero(brain)
        inputs = classifier_inputs(image, brain, self.label_atlas, spacing, at)
        # Standardised in the weights, so that the inputs are passed over once.
        reach = _RANGE * self.scale
        np.clip(inputs, (self.centre - reach)[:, None], (self.centre + reach)[:, None], out=inputs)
        weight = self.hidden_weight / self.scale[:, None]
        hidden = weight.T @ inputs + (self.hidden_bias - self.centre @ weight)[:, None]
        np.maximum(hidden, 0, out=hidden)
        score = self.output_weight.T @ hidden + self.output_bias[:, None]
        likely = np.exp(score[:CLASSES] - score[:CLASSES].max(axis=0))
        seen = np.zeros((CLASSES + 1, image.size), np.float32)
        seen[:CLASSES, at] = likely / likely.sum(axis=0)
        seen[CLASSES, at] = special.expit(score[CLASSES])
        maps = seen.reshape(CLASSES + 1, *image.shape)
        return SeenTissue(maps[:CLASSES], maps[CLASSES])


def classifier_inputs(
    image: Float32s, brain: Mask, label_atlas: Float32s, spacing: Spacing, at: Places
) -> Float32s:
    """Return what the classifier reads of the voxels `at` [n], [input, n]."""
    dark = np.clip(-2 * image - 0.6, 0, 1)
    stack = np.stack([image, dark, brain.astype(np.float32)])
    around = [smooth(stack, spacing, sigma).reshape(3, -1)[:, at] for sigma in (4.0, 9.0, 18.0)]
    neighbours = [shift(image, spacing, offset).ravel()[at] for offset in NEIGHBOURS_MM]
    return join(
        image.ravel()[at],
        dark.ravel()[at],
        *neighbours,
        *around,
        _position(brain, spacing, at),
        label_atlas.reshape(CLASSES, -1)[:, at],
    )


def _position(brain: Mask, spacing: Spacing, at: Places) -> Float32s:
    """Return slice (mm), row, and distance from the middle relative to the brain's size, [3, n]."""
    s, h, w = np.unravel_index(at, brain.shape)
    _, rows, across = np.nonzero(brain)
    row = (h - rows.mean()) / max(float(rows.std()), 1)
    side = np.abs(w - across.mean()) / max(float(across.std()), 1)
    return np.stack([s * spacing[0], row, side]).astype(np.float32)


@dataclass(frozen=True)
class LabelledVoxels:
    """Sampled voxels of one case."""

    #: Inputs, [input, n], and tissue classes, [n].
    inputs: Float32s
    classes: Ints
    #: 1 in a T2 lesion and 0 elsewhere, [n]; NaN where that is unknown.
    lesion: Float32s
    #: Share of lesions in the brain. Lesions are few, so their voxels are sampled more often.
    lesion_share: float


def fit_tissue_classifier(
    cases: Sequence[LabelledVoxels], label_atlas: Float32s, seed: int
) -> TissueClassifier:
    """Fit the classifier by cross entropy to sampled voxels of training cases.

    The optimizer is Adam (Kingma and Ba 2015) with a cosine schedule. Importing that of PyTorch
    would take longer than the whole fit.
    """
    inputs = np.concatenate([case.inputs for case in cases], axis=1).T
    centre, scale = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-3)
    standard = np.clip((inputs - centre) / scale, -_RANGE, _RANGE)
    classes = np.concatenate([case.classes for case in cases])
    lesion = np.concatenate([case.lesion for case in cases])
    rng = np.random.default_rng(seed)
    layers = _initial_layers(rng, standard.shape[1])
    mean = [np.zeros_like(layer) for layer in layers]
    square = [np.zeros_like(layer) for layer in layers]
    for step in range(_STEPS):
        rows = rng.integers(len(standard), size=_ROWS)
        gradient = _gradient(layers, standard[rows], classes[rows], lesion[rows])
        rate = _LEARNING_RATE * (1 + np.cos(np.pi * step / _STEPS)) / 2
        for layer, slope, m, v in zip(layers, gradient, mean, square, strict=True):
            m += (1 - _BETAS[0]) * (slope - m)
            v += (1 - _BETAS[1]) * (slope**2 - v)
            unbiased = np.sqrt(v / (1 - _BETAS[1] ** (step + 1))) + 1e-8
            layer -= rate * m / (1 - _BETAS[0] ** (step + 1)) / unbiased
    # Probabilities of a lesion are those of the brain and not of the sample.
    sampled = np.nanmean(lesion) if np.isfinite(lesion).any() else 0.0
    share = np.mean([case.lesion_share for case in cases])
    if sampled > 0 and share > 0:
        layers[3][CLASSES] += special.logit(share) - special.logit(sampled)
    return TissueClassifier(label_atlas, centre, scale, *layers)


def _initial_layers(rng: np.random.Generator, inputs: int) -> list[Float32s]:
    """Return random layers, as in `TissueClassifier`; the log odds of a lesion start at 0."""
    hidden = rng.standard_normal((inputs, HIDDEN)) * (2 / inputs) ** 0.5
    output = rng.standard_normal((HIDDEN, CLASSES + 1)) * (2 / HIDDEN) ** 0.5
    output[:, CLASSES] = 0
    layers = (hidden, np.zeros(HIDDEN), output, np.zeros(CLASSES + 1))
    return [layer.astype(np.float32) for layer in layers]


def _gradient(
    layers: Sequence[Float32s], inputs: Float32s, classes: Ints, lesion: Float32s
) -> tuple[Float32s, Float32s, Float32s, Float32s]:
    """Return the gradient of the mean cross entropy by each layer, from `inputs` [n, input]."""
    hidden_weight, hidden_bias, output_weight, output_bias = layers
    hidden = np.maximum(inputs @ hidden_weight + hidden_bias, 0)
    score = hidden @ output_weight + output_bias
    error = np.empty_like(score)
    error[:, :CLASSES] = special.softmax(score[:, :CLASSES], axis=1)
    error[np.arange(len(classes)), classes] -= 1
    error[:, CLASSES] = np.nan_to_num(special.expit(score[:, CLASSES]) - lesion)
    error /= len(classes)
    back = (error @ output_weight.T) * (hidden > 0)
    return inputs.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)
