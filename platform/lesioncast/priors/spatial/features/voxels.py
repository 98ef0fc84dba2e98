"""All features of a patient's voxels, computed once per kind of input and shared by patterns."""

from dataclasses import dataclass, field

import numpy as np

from lesioncast.arrays import Float32s, Mask
from lesioncast.priors.spatial.features.curves import columns
from lesioncast.priors.spatial.features.flair import flair_features, tissue_intensity
from lesioncast.priors.spatial.features.history import history_features, history_of
from lesioncast.priors.spatial.features.tissue import classes_of, one_hot, tissue_features
from lesioncast.priors.spatial.inputs import FLAIR_CHANNELS, MASK_CHANNELS, Places, SpatialInputs

Key = tuple[str, ...]


@dataclass(frozen=True)
class VoxelFeatures:
    """Features of some voxels of one patient, for any part of the patient's inputs."""

    #: Densities of the lesion atlas, [width, s, h, w].
    atlas: Float32s
    #: Flat indices of the voxels, [n].
    at: Places
    #: Brain of the patient as all inputs show it, [s, h, w].
    brain: Mask
    _blocks: dict[Key, Float32s | None] = field(default_factory=dict)

    def matrix(self, inputs: SpatialInputs) -> Float32s:
        """Return the features from these inputs, [n, feature].

        Which columns there are depends on the pattern of `inputs` alone.
        """
        own = sorted(inputs.channels)
        flairs = tuple(name for name in own if name in FLAIR_CHANNELS)
        masks = tuple(name for name in own if name in MASK_CHANNELS)
        blocks = (
            self._block(("atlas",), inputs),
            self._block(("history", *masks), inputs),
            self._block(("tissue",), inputs) if inputs.parcellation is not None else None,
            self._block(("flair", *flairs), inputs),
        )
        return columns(*(block for block in blocks if block is not None))

    def _block(self, key: Key, inputs: SpatialInputs) -> Float32s | None:
        if key not in self._blocks:
            self._blocks[key] = self._compute(key[0], inputs)
        return self._blocks[key]

    def _compute(self, kind: str, inputs: SpatialInputs) -> Float32s | None:
        if kind == "atlas":
            return np.log(self.atlas.reshape(len(self.atlas), -1)[:, self.at]).T
        if kind == "history":
            history = history_of(inputs)
            if history is None:
                return None
            return history_features(history, self.atlas[0], inputs.spacing, self.at)
        if kind == "tissue" and inputs.parcellation is not None:
            tissue = one_hot(classes_of(inputs.parcellation))
            return tissue_features(tissue, inputs.spacing, self.at)
        intensity = tissue_intensity(inputs, self.brain)
        if intensity is None:
            return None
        return flair_features(intensity, inputs.spacing, self.at)
