"""The spatial prior: the density of a patient's next new-lesion voxels, from images and masks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Float32s
from lesioncast.priors.spatial.atlas import LesionAtlas
from lesioncast.priors.spatial.conditional_logit import LinearModel
from lesioncast.priors.spatial.features.tissue_classifier import TissueClassifier
from lesioncast.priors.spatial.features.voxels import VoxelFeatures
from lesioncast.priors.spatial.inputs import SpatialInputs
from lesioncast.priors.spatial.patterns import PATTERNS, Pattern, covers, pattern_of, reduced
from lesioncast.priors.spatial.support import brain_support

Arrays = dict[str, npt.NDArray[Any]]
JsonConfig = dict[str, Any]

# Share of the atlas, within the brain, in every density: what no training case showed is possible.
ATLAS_SHARE = 0.01
# Number of the features' definition. It changes with them, because weights fit one definition.
FEATURES = 2
# Log density where no lesion is possible. It is finite, so that sums and differences are.
LOG_IMPOSSIBLE = -30.0


@dataclass(frozen=True)
class SpatialPrior:
    """Lesion atlas, tissue classifier, and the weights of each pattern of presence."""

    atlas: LesionAtlas
    models: Mapping[Pattern, LinearModel]
    classifier: TissueClassifier | None = None

    def atlas_log_density(self) -> Float32s:
        """Return the log density of a patient of whom nothing is known, [s, h, w]."""
        return np.asarray(np.log(self.atlas.densities[0]))

    def log_density(self, inputs: SpatialInputs) -> Float32s:
        """Return the log density of a new-lesion voxel, [s, h, w]; its exponentials sum to 1.

        Where no lesion is possible, it is LOG_IMPOSSIBLE. Inputs of a pattern without weights are
        reduced to the most informative pattern that has some, at last to the atlas. Raises
        ValueError if the volumes have another size or spacing than those of training.
        """
        shape = inputs.shape
        if shape is None:
            return self.atlas_log_density()
        self._check_grid(inputs)
        brain = brain_support(inputs, shape)
        at = np.flatnonzero(brain)
        atlas = self.atlas.densities
        even = atlas[0].ravel()[at]
        even = even / even.sum()
        known = self._usable(inputs)
        if known is None:
            density = even
        else:
            pattern, used = known
            features = VoxelFeatures(atlas, at, self.classifier)
            score = self.models[pattern].score(features.matrix(used))
            density = np.exp(score - score.max())
            density = (1 - ATLAS_SHARE) * density / density.sum() + ATLAS_SHARE * even
        result = np.full(shape, LOG_IMPOSSIBLE, np.float32)
        result.flat[at] = np.maximum(np.log(density), LOG_IMPOSSIBLE)
        return result

    def pattern_used(self, inputs: SpatialInputs) -> Pattern | None:
        """Return the pattern whose weights are used for these inputs, None for the atlas."""
        known = self._usable(inputs)
        return None if known is None else known[0]

    def _usable(self, inputs: SpatialInputs) -> tuple[Pattern, SpatialInputs] | None:
        own = pattern_of(inputs)
        if own in self.models:
            return own, inputs
        for pattern in PATTERNS:
            if pattern in self.models and covers(own, pattern):
                used = reduced(inputs, pattern)
                if used is not None:
                    return pattern, used
        return None

    def _check_grid(self, inputs: SpatialInputs) -> None:
        expected = (self.atlas.total.shape, self.atlas.spacing)
        if (inputs.shape, tuple(inputs.spacing)) != expected:
            raise ValueError(
                f"spatial prior: expected volumes of {expected[0]} voxels of {expected[1]} mm as "
                f"in training, got {inputs.shape} of {inputs.spacing}; fit the prior on this grid"
            )

    def to_arrays(self) -> tuple[JsonConfig, Arrays]:
        """Return what defines the prior: a configuration for JSON, and arrays by name."""
        arrays: Arrays = {"atlas/total": self.atlas.total}
        for pattern, model in self.models.items():
            for part in ("centre", "scale", "weight"):
                arrays[f"{pattern.name}/{part}"] = getattr(model, part)
        if self.classifier is not None:
            arrays |= {f"classifier/{name}": array for name, array in vars(self.classifier).items()}
        config = {
            "features": FEATURES,
            "classifier": self.classifier is not None,
            "spacing": list(self.atlas.spacing),
            "patterns": [pattern.name for pattern in self.models],
        }
        return config, arrays

    @classmethod
    def from_arrays(
        cls, config: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> "SpatialPrior":
        """Return the prior that `to_arrays` described.

        Raises ValueError for features or a pattern that this version does not know.
        """
        if config.get("features") != FEATURES:
            raise ValueError(
                f"spatial prior: expected features of version {FEATURES}, got "
                f"{config.get('features', 1)}; fit the prior with this version"
            )
        by_name = {pattern.name: pattern for pattern in PATTERNS}
        if unknown := set(config["patterns"]) - set(by_name):
            raise ValueError(
                f"spatial prior: expected patterns of {', '.join(by_name)}, got "
                f"{sorted(unknown)}; fit the prior with this version"
            )
        s, h, w = config["spacing"]
        return cls(
            LesionAtlas(np.asarray(arrays["atlas/total"], np.float32), (s, h, w)),
            {
                by_name[name]: LinearModel(
                    *(arrays[f"{name}/{part}"] for part in ("centre", "scale", "weight"))
                )
                for name in config["patterns"]
            },
            TissueClassifier(
                **{
                    name.removeprefix("classifier/"): array
                    for name, array in arrays.items()
                    if name.startswith("classifier/")
                }
            )
            if config["classifier"]
            else None,
        )
