"""All features of a patient's voxels, computed once per kind of input and shared by patterns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from lesioncast.arrays import Float32s, Mask, Spacing
from lesioncast.priors.spatial.features.curves import join
from lesioncast.priors.spatial.features.flair import (
    flair_features,
    surroundings,
    tissue_intensity,
)
from lesioncast.priors.spatial.features.history import history_features, history_of
from lesioncast.priors.spatial.features.mixture import around_lesions, mixture_features
from lesioncast.priors.spatial.features.seen_lesions import seen_lesion_features
from lesioncast.priors.spatial.features.tissue import WHITE, classes_of, one_hot, tissue_features
from lesioncast.priors.spatial.features.tissue_classifier import SeenTissue, TissueClassifier
from lesioncast.priors.spatial.inputs import FLAIR_CHANNELS, MASK_CHANNELS, Places, SpatialInputs
from lesioncast.priors.spatial.patterns import LesionHistory, pattern_of
from lesioncast.priors.spatial.support import brain_support

Key = tuple[str, ...]
Compute = Callable[[SpatialInputs], Float32s | None]


@dataclass(frozen=True)
class ShownFlair:
    """FLAIR of one choice of sessions, and what the classifier sees in it."""

    #: FLAIR in units of the patient's tissue, [session, s, h, w].
    intensity: Float32s
    brain: Mask
    spacing: Spacing
    classifier: TissueClassifier | None

    @cached_property
    def seen(self) -> SeenTissue | None:
        """Return tissue and lesions; None without a classifier."""
        if self.classifier is None:
            return None
        return self.classifier.classify(self.intensity.mean(axis=0), self.brain, self.spacing)


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
    _flairs: dict[Key, ShownFlair] = field(default_factory=dict)

    def matrix(self, inputs: SpatialInputs) -> Float32s:
        """Return the features from these inputs, [feature, n].

        Which rows there are depends on the pattern of `inputs` alone.
        """
        names = sorted(inputs.channels)
        flairs = tuple(name for name in names if name in FLAIR_CHANNELS)
        masks = tuple(name for name in names if name in MASK_CHANNELS)
        labels = flairs if inputs.parcellation is None else ("parcellation",)
        # Without T2 masks, what FLAIR shows of older lesions stands in for them.
        unknown = pattern_of(inputs).history in (LesionHistory.NONE, LesionHistory.NEW)
        blocks = (
            self._once(("atlas",), self._atlas, inputs),
            self._once(("history", *masks), self._history, inputs),
            self._once(("tissue features", *labels), self._tissue_features, inputs),
            self._once(("mixture", *masks, *labels), self._mixture, inputs),
            self._once(("flair", *flairs), self._flair, inputs),
            self._once(("seen lesions", *flairs), self._seen_lesions, inputs) if unknown else None,
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
        masks = tuple(name for name in MASK_CHANNELS if name in inputs.channels)
        around = self._once(("around", *masks), self._around_lesions, inputs)
        assert around is not None
        return mixture_features(around, self.atlas[0], white, self.at)

    def _around_lesions(self, inputs: SpatialInputs) -> Float32s | None:
        history = history_of(inputs)
        return None if history is None else around_lesions(history.older, inputs.spacing)

    def support(self, inputs: SpatialInputs) -> Mask:
        """Return where lesions are possible, as `brain_support` does."""
        if inputs.parcellation is None and inputs.flairs():
            return self._shown(inputs).brain
        s, h, w = self.atlas.shape[1:]
        return brain_support(inputs, (s, h, w))

    def _tissue_features(self, inputs: SpatialInputs) -> Float32s | None:
        tissue = self._tissue(inputs)
        if tissue is not None:
            return tissue_features(tissue, inputs.spacing, self.at)
        if inputs.flairs():
            return surroundings(self._shown(inputs).intensity, inputs.spacing, self.at)
        return None

    def _flair(self, inputs: SpatialInputs) -> Float32s | None:
        if not inputs.flairs():
            return None
        return flair_features(self._shown(inputs).intensity, inputs.spacing, self.at)

    def _seen_lesions(self, inputs: SpatialInputs) -> Float32s | None:
        seen = self._shown(inputs).seen if inputs.flairs() else None
        if seen is None:
            return None
        return seen_lesion_features(seen.lesions, self.atlas[0], inputs.spacing, self.at)

    def _tissue(self, inputs: SpatialInputs) -> Float32s | None:
        """Return tissue probabilities [class, s, h, w] from the parcellation, else from FLAIR."""
        if inputs.parcellation is not None:
            return one_hot(classes_of(inputs.parcellation))
        seen = self._shown(inputs).seen if inputs.flairs() else None
        return None if seen is None else seen.classes

    def _shown(self, inputs: SpatialInputs) -> ShownFlair:
        """Return what FLAIR shows, computed once for each choice of sessions."""
        sessions = tuple(name for name in FLAIR_CHANNELS if name in inputs.channels)
        if sessions not in self._flairs:
            s, h, w = self.atlas.shape[1:]
            brain = brain_support(replace(inputs, parcellation=None), (s, h, w))
            intensity = tissue_intensity(inputs, brain)
            self._flairs[sessions] = ShownFlair(intensity, brain, inputs.spacing, self.classifier)
        return self._flairs[sessions]
