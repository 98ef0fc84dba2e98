"""Tell tissue from FLAIR, for patients without a parcellation.

A perceptron with one hidden layer looks at a voxel's intensity, its neighbours a few millimetres
away, and its surroundings at several widths. It is fitted to the parcellations of training cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

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
_STEPS, _ROWS, _LEARNING_RATE, _WEIGHT_DECAY = 600, 2048, 8e-3, 1e-3
# Standardised inputs beyond this are clipped: a patient may differ from all of training.
_RANGE = 4.0


@dataclass(frozen=True)
class TissueClassifier:
    """Weights of the perceptron, and where each tissue lies in training cases."""

    #: Share of training cases with each class at a voxel, [class, s, h, w].
    label_atlas: Float32s
    #: Mean and standard deviation of the inputs, [input] each.
    centre: Float32s
    scale: Float32s
    #: Layers: [input, hidden], [hidden], [hidden, class], [class].
    hidden_weight: Float32s
    hidden_bias: Float32s
    output_weight: Float32s
    output_bias: Float32s

    def tissue(self, image: Float32s, brain: Mask, spacing: Spacing) -> Float32s:
        """Return the probabilities of the tissue classes, [class, s, h, w]; 0 outside the brain.

        `image` [s, h, w] is FLAIR in units of the patient's own tissue.
        """
        at = np.flatnonzero(brain)
        inputs = classifier_inputs(image, brain, self.label_atlas, spacing, at)
        inputs -= self.centre[:, None]
        inputs /= self.scale[:, None]
        np.clip(inputs, -_RANGE, _RANGE, out=inputs)
        hidden = self.hidden_weight.T @ inputs + self.hidden_bias[:, None]
        np.maximum(hidden, 0, out=hidden)
        score = self.output_weight.T @ hidden + self.output_bias[:, None]
        likely = np.exp(score - score.max(axis=0))
        tissue = np.zeros((CLASSES, image.size), np.float32)
        tissue[:, at] = likely / likely.sum(axis=0)
        return tissue.reshape(CLASSES, *image.shape)


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
        *(row for rows in around for row in rows),
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
    """Inputs [input, n] and classes [n] of sampled voxels of one case."""

    inputs: Float32s
    classes: Ints


def fit_tissue_classifier(
    cases: Sequence[LabelledVoxels], label_atlas: Float32s, seed: int
) -> TissueClassifier:
    """Fit the classifier by cross entropy to sampled voxels of training cases."""
    inputs = np.concatenate([case.inputs for case in cases], axis=1).T
    centre, scale = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-3)
    standard = torch.from_numpy(np.clip((inputs - centre) / scale, -_RANGE, _RANGE))
    classes = torch.from_numpy(np.concatenate([case.classes for case in cases]))
    rng = torch.Generator().manual_seed(seed)
    sizes = ((standard.shape[1], HIDDEN), (HIDDEN, CLASSES))
    weights = [torch.randn(size, generator=rng) * (2 / size[0]) ** 0.5 for size in sizes]
    biases = [torch.zeros(size[1]) for size in sizes]
    layers = [layer.requires_grad_() for layer in (*weights, *biases)]
    optimizer = torch.optim.AdamW(layers, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(standard), (_ROWS,), generator=rng)
        hidden = functional.relu(standard[rows] @ weights[0] + biases[0])
        loss = functional.cross_entropy(hidden @ weights[1] + biases[1], classes[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    first, second, first_bias, second_bias = (layer.detach().numpy() for layer in layers)
    return TissueClassifier(label_atlas, centre, scale, first, first_bias, second, second_bias)
