"""The fitted spatial prior with the lesion voxels of each load class, as one file.

Training fits it before stage 1, and the bundle holds it beside the networks that refine it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lesioncast.arrays import Float32s, LabelMap, Mask
from lesioncast.diffusion.spatial.base_map import BaseMap
from lesioncast.errors import BundleError
from lesioncast.imaging.channels import CURRENT
from lesioncast.priors.spatial.inputs import SpatialInputs
from lesioncast.priors.spatial.prior import SpatialPrior
from storage.atomic import atomic_write

VOXELS = "lesion_voxels"  # name of the array of quantiles
CONFIG, RECORD = "config", "record"  # keys of the file's metadata
PRIOR = "prior/"


@dataclass(frozen=True)
class SpatialBase:
    """What gives each patient a base map: the spatial prior and the lesion voxels by load class."""

    prior: SpatialPrior
    #: Numbers of lesion voxels of each class with lesions at evenly spread quantiles,
    #: [class - 1, quantile].
    voxels: Float32s
    #: Names of the channels of a condition, such as w000/flair.
    channels: tuple[str, ...]
    #: Size of a voxel (s, h, w) in mm.
    spacing: tuple[float, float, float]

    @property
    def base_map(self) -> BaseMap:
        """Return what the networks need of it, on the CPU."""
        atlas = self.prior.atlas_log_density()
        return BaseMap(torch.from_numpy(atlas), torch.from_numpy(self.voxels))

    def log_density(self, condition: Float32s, parcellation: LabelMap | None) -> Float32s:
        """Return a patient's log density of new-lesion voxels, [s, h, w].

        `condition` [channel, s, h, w] is zero for channels that the patient lacks or that are not
        shown. The parcellation was made from the current session, and is read with that session
        alone.
        """
        shown = {
            name: volume
            for name, volume in zip(self.channels, condition, strict=True)
            if volume.any()
        }
        current = any(name.startswith(f"{CURRENT}/") for name in shown)
        inputs = SpatialInputs(shown, self.spacing, parcellation if current else None)
        density: Float32s = self.prior.log_density(inputs).astype(np.float32)
        return density

    def without(self, outcome: Mask) -> "SpatialBase":
        """Return the base without the new lesions of a training case [s, h, w] in its atlas."""
        return replace(self, prior=replace(self.prior, atlas=self.prior.atlas.without(outcome)))


def write_spatial_base(
    path: Path, base: SpatialBase, record: Mapping[str, Any] | None = None
) -> None:
    """Write the base to `path` in one step; `record` says how it was made, as JSON."""
    config, arrays = base.prior.to_arrays()
    stored = {f"{PRIOR}{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    config = {"prior": config, "channels": base.channels, "spacing": base.spacing}
    metadata = {CONFIG: json.dumps(config), RECORD: json.dumps(record or {})}
    atomic_write(path, save({VOXELS: base.voxels, **stored}, metadata))


def read_spatial_base(path: Path) -> SpatialBase:
    """Read a base. Raise BundleError if the file is missing or is not one."""
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config = json.loads(file.metadata()[CONFIG])
        prior = SpatialPrior.from_arrays(
            config["prior"],
            {
                name.removeprefix(PRIOR): array
                for name, array in arrays.items()
                if name.startswith(PRIOR)
            },
        )
        s, h, w = config["spacing"]
        return SpatialBase(prior, arrays[VOXELS], tuple(config["channels"]), (s, h, w))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{path}: expected a spatial prior, got {error!r}; run jobs/pretrain.py and "
            "jobs/finetune.py to make it again"
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """Return how the base at `path` was made. Raise BundleError if the file is not one."""
    try:
        with safe_open(path, framework="np") as file:
            record: dict[str, Any] = json.loads(file.metadata()[RECORD])
            return record
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{path}: expected a spatial prior, got {error!r}; remove the file and run "
            "jobs/pretrain.py again"
        ) from error
