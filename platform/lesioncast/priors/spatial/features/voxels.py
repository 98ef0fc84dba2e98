"""All features of a patient's voxels, computed once per kind of input and shared by patterns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from lesioncast.arrays import Float32s, Mask
from lesioncast.priors.spatial.features.curves import join
from lesioncast.priors.spatial.features.flair import (
    flair_features,
    surroundings,
    tissue_intensity,
)
from lesioncast.priors.spatial.features.history import history_features, history_of
from lesioncast.priors.spatial.features.mixture import mixture_features
from lesioncast.priors.spatial.features.tissue import WHITE, classes_of, one_hot, tissue_features
from lesioncast.priors.spatial.features.tissue_classifier import TissueClassifier
from lesioncast.priors.spatial.inputs import FLAIR_CHANNELS, MASK_CHANNELS, Places, SpatialInputs
from lesioncast.priors.spatial.support import brain_support

Key = tuple[str, ...]
Compute = Callable[[SpatialInputs], Float32s | None]


@dataclass(frozen=True)
class VoxelFeatures:
    """Features of some voxels of one patient, for any part of the patient's inputs."""

    #: Densities of the lesion atlas, [width, s, h, w].
    atlas: Float32s
    #: Flat indices of the voxels, [n].
    at: Places
    #: Gives tissue where there is FLAIR and no parcellation. Without one, what surrounds a voxel in
    #: FLAIR stands in for tissue.
    classifier: TissueClassifier | None = None
    _computed: dict[Key, Float32s | None] = field(default_factory=dict)

    def matrix(self, inputs: SpatialInputs) -> Float32s:
        """Return the features from these inputs, [feature, n].

        Which rows there are depends on the pattern of `inputs` alone.
        """
        names = sorted(inputs.channels)
        flairs = tuple(name for name in names if name in FLAIR_CHANNELS)
        masks = tuple(name for name in names if name in MASK_CHANNELS)
        labels = flairs if inputs.parcellation is None else ("parcellation",)
        blocks = (
            self._once(("atlas",), self._atlas, inputs),
            self._once(("history", *masks), self._history, inputs),
            self._once(("tissue features", *labels), self._tissue_features, inputs),
            self._once(("mixture", *masks, *labels), self._mixture, inputs),
            self._once(("flair", *flairs), self._flair, inputs),
        )
        return join(*(block for block in blocks if block is not None))

    def _once(self, key: Key, compute: Compute, inputs: SpatialInputs) -> Float32s | None:
        """Compute what `key` names on first use; it depends on the inputs in the key alone."""
        if key not in self._computed:
            self._computed[key] = compute(inputs)
        return self._computed[key]

    def _atlas(self, inputs: SpatialInputs) -> Float32s:
        return np.asarray(np.log(self.atlas.reshape(len(self.atlas), -1)[:, self.at]))

    def _history(self, inputs: SpatialInputs) -> Float32s | None:
        history = history_of(inputs)
        if history is None:
            return None
        return history_features(history, self.atlas[0], inputs.spacing, self.at)

    def _mixture(self, inputs: SpatialInputs) -> Float32s | None:
        history = history_of(inputs)
        if history is None:
            return None
        tissue = self._tissue(inputs)
        white = None if tissue is None else tissue[WHITE]
        return mixture_features(history.older, self.atlas[0], white, inputs.spacing, self.at)

    def _tissue_features(self, inputs: SpatialInputs) -> Float32s | None:
        tissue = self._tissue(inputs)
        if tissue is not None:
            return tissue_features(tissue, inputs.spacing, self.at)
        if inputs.flairs():
            intensity, _ = self._intensity(inputs)
            return surroundings(intensity, inputs.spacing, self.at)
        return None

    def _flair(self, inputs: SpatialInputs) -> Float32s | None:
        if not inputs.flairs():
            return None
        return flair_features(self._intensity(inputs)[0], inputs.spacing, self.at)

    def _tissue(self, inputs: SpatialInputs) -> Float32s | None:
        """Return tissue probabilities [class, s, h, w] from the parcellation, else from FLAIR."""
        if inputs.parcellation is not None:
            return one_hot(classes_of(inputs.parcellation))
        flairs = tuple(name for name in FLAIR_CHANNELS if name in inputs.channels)
        return self._once(("tissue", *flairs), self._classified, inputs) if flairs else None

    def _classified(self, inputs: SpatialInputs) -> Float32s | None:
        if self.classifier is None:
            return None
        intensity, brain = self._intensity(inputs)
        return self.classifier.tissue(intensity.mean(axis=0), brain, inputs.spacing)

    def _intensity(self, inputs: SpatialInputs) -> tuple[Float32s, Mask]:
        """Return FLAIR [session, s, h, w] in units of the patient's tissue, and its brain."""
        s, h, w = self.atlas.shape[1:]
        brain = brain_support(replace(inputs, parcellation=None), (s, h, w))
        return tissue_intensity(inputs, brain), brain
