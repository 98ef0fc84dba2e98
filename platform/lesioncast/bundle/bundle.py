"""Save and load a bundle, the folder that training hands to forecasting and serving.

A bundle holds unet.safetensors and controlnet.safetensors (averaged weights), config.json,
metrics.json, README.md (the model card) and manifest.json with the SHA-256 of each file. Where the
networks refine a base map, spatial_prior.safetensors holds the spatial prior. Where a prior states
outcomes in closed form, calibration.json holds what validation cases taught about them. Networks of
further training seeds lie in subfolders (see `lesioncast.bundle.members`). The SHA-256 of the
manifest names the bundle. Loading a bundle needs no settings.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lesioncast.bundle.calibration import BundleCalibration, write_calibration
from lesioncast.bundle.config import SCHEMA, BundleConfig
from lesioncast.bundle.description import (
    CARD_FILE,
    CONFIG_FILE,
    DESCRIPTION_FILES,
    FILES,
    MANIFEST,
    METRICS_FILE,
    OPTIONAL_FILES,
    RETRAIN,
    BundleDescription,
    bundle_digest,
    files_of,
    read_description,
    read_unchanged,
)
from lesioncast.bundle.io import Weights, digests_of, first_non_finite, read_tensors, write_tensors
from lesioncast.bundle.json_files import write_json
from lesioncast.bundle.members import (
    CONTROL_FILE,
    SPATIAL_FILE,
    UNET_FILE,
    copy_members,
    member_folders,
)
from lesioncast.bundle.model_card import model_card
from lesioncast.bundle.spatial_base import SpatialBase, read_spatial_base
from lesioncast.bundle.typicality import read_typicality, write_typicality
from lesioncast.diffusion.controlnet import ControlNet, build_lesion_load_prior
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.unet import UNet
from lesioncast.errors import BundleError
from storage.atomic import atomic_directory, current_directory
from storage.digest import sha256_file

PRIOR = "lesion_load_prior."  # prefix of the prior's weights among those of the ControlNet


@dataclass(frozen=True)
class BundlePrior(BundleDescription):
    """Description and lesion load priors of a bundle: exact outcomes without networks."""

    #: One for each member; empty for a model without lesion loads.
    priors: tuple[LesionLoadPrior, ...]


@dataclass(frozen=True)
class Member:
    """Networks of one training seed."""

    model: LesionDiffusion
    #: Gives each patient a base map; None for networks without one.
    base: SpatialBase | None


@dataclass(frozen=True)
class Bundle(BundleDescription):
    """Loaded bundle: its description and its networks."""

    members: tuple[Member, ...]

    @property
    def priors(self) -> tuple[LesionLoadPrior, ...]:
        """Return the lesion load prior of each member; none for a model without lesion loads."""
        priors = (member.model.control.lesion_load_prior for member in self.members)
        return tuple(prior for prior in priors if prior is not None)

    @property
    def model(self) -> LesionDiffusion:
        """Return the networks of a bundle with one member; see `sole_member`."""
        return self.sole_member.model

    @property
    def base(self) -> SpatialBase | None:
        """Return what gives base maps in a bundle with one member; see `sole_member`."""
        return self.sole_member.base

    @property
    def sole_member(self) -> Member:
        """Return the only member. Raise BundleError if there are several, whose mean counts."""
        if len(self.members) > 1:
            raise BundleError(
                f"{self.path}: expected a bundle with one member, got {len(self.members)}; give "
                "one of those that `lesioncast combine` made it from"
            )
        return self.members[0]


def save_bundle(
    path: Path,
    config: BundleConfig,
    *,
    unet: Weights,
    control: Weights,
    metrics: Mapping[str, Any],
    base: Path | None = None,
    calibration: BundleCalibration | None = None,
) -> str:
    """Write a bundle to `path` and return its digest. An older bundle at `path` is replaced.

    `unet` and `control` are the averaged weights, by the names of `UNet` and `ControlNet`.
    `metrics` describes the data and the training of each stage, as JSON. `base` is the file of the
    spatial prior for networks with a base map, `calibration` what validation cases taught. Raise
    BundleError if `path` exists and is not a
    bundle, or if a weight is not finite.
    """
    check_replaceable(path)
    for file, weights in ((UNET_FILE, unet), (CONTROL_FILE, control)):
        name = first_non_finite(weights)
        if name is not None:
            raise BundleError(
                f"{path / file}: expected finite weights, got an infinity or NaN in {name}; no "
                f"bundle was written. {RETRAIN.capitalize()}, with a lower learning_rate"
            )
    with atomic_directory(path) as folder:
        write_tensors(folder / UNET_FILE, unet)
        write_tensors(folder / CONTROL_FILE, control)
        if base is not None:
            shutil.copyfile(base, folder / SPATIAL_FILE)
        _finish(folder, config, metrics, calibration)
    return bundle_digest(path)


def save_same_weights(
    path: Path,
    *parents: BundleDescription,
    config: BundleConfig,
    metrics: Mapping[str, Any],
    calibration: BundleCalibration | None,
) -> str:
    """Write a bundle with the members of all `parents` to `path`, and return its digest.

    `path` may be that of a parent. The new bundle judges typicality as the first parent does. Raise
    BundleError if `path` exists and is not a bundle.
    """
    check_replaceable(path)
    reference = read_typicality(parents[0].path, parents[0].digest)
    sources = [
        current_directory(parent.path) / member
        for parent in parents
        for member in member_folders(parent.member_count)
    ]
    with atomic_directory(path) as folder:
        members = copy_members(folder, sources)
        _finish(folder, config, metrics, calibration, members=members)
        if reference is not None:
            write_typicality(folder, sha256_file(folder / MANIFEST), reference)
    return bundle_digest(path)


def check_replaceable(path: Path) -> None:
    """Raise BundleError if `path` exists and is not a bundle."""
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(
            f"{path}: expected a bundle or nothing there, got something else; "
            "choose another path for the bundle"
        )


def _finish(
    folder: Path,
    config: BundleConfig,
    metrics: Mapping[str, Any],
    calibration: BundleCalibration | None,
    *,
    members: int = 1,
) -> None:
    """Write all files of a bundle but the weights, which are in `folder`."""
    write_json(folder / CONFIG_FILE, asdict(config))
    write_json(folder / METRICS_FILE, metrics)
    if calibration is not None:
        write_calibration(folder, calibration)
    (folder / CARD_FILE).write_text(model_card(config, metrics, calibration))
    names = files_of(config, calibrated=calibration is not None, members=members)
    digests = digests_of(folder, names)
    write_json(folder / MANIFEST, {"schema": SCHEMA, "sha256": digests})


def load_bundle(path: Path, *, device: torch.device | str = "cpu") -> Bundle:
    """Load the bundle at `path`, with its networks on `device` in evaluation mode.

    Raise BundleError, naming the file, if a file is missing, altered or of another schema.
    """

    def load(folder: Path) -> Bundle:
        description = read_description(path, folder, verified=(*FILES, *OPTIONAL_FILES))
        return Bundle(
            **vars(description),
            members=tuple(
                _load_member(folder / member, description.config, device)
                for member in member_folders(description.member_count)
            ),
        )

    return read_unchanged(path, load)


def _load_member(folder: Path, config: BundleConfig, device: torch.device | str) -> Member:
    """Load the networks in `folder` onto `device`."""
    model = config.model
    unet = UNet(model.unet)
    unet.load_state_dict(read_tensors(folder / UNET_FILE))
    control = ControlNet(model.control, model.unet, model.covariates)
    control.load_state_dict(read_tensors(folder / CONTROL_FILE))
    base = read_spatial_base(folder / SPATIAL_FILE) if model.unet.base_map else None
    networks = LesionDiffusion(
        unet.to(device),
        control.to(device),
        model,
        odds_ratio=config.balanced_odds_ratio,
        base_map=None if base is None else base.base_map.to(device),
    )
    return Member(networks, base)


def load_bundle_prior(path: Path) -> BundlePrior:
    """Load the lesion load priors of the bundle at `path`; no other weight is kept in memory.

    Raise BundleError as `load_bundle` does, but for an altered UNet.
    """

    def load(folder: Path) -> BundlePrior:
        description = read_description(path, folder, verified=(CONTROL_FILE, *DESCRIPTION_FILES))
        priors = (
            _load_prior(folder / member, description.config)
            for member in member_folders(description.member_count)
        )
        return BundlePrior(
            **vars(description), priors=tuple(prior for prior in priors if prior is not None)
        )

    return read_unchanged(path, load)


def _load_prior(folder: Path, config: BundleConfig) -> LesionLoadPrior | None:
    """Load the lesion load prior in `folder`; None for a model without lesion loads."""
    model = config.model
    prior = build_lesion_load_prior(model.control, model.unet, model.covariates)
    if prior is not None:
        prior.load_state_dict(read_tensors(folder / CONTROL_FILE, PRIOR))
        prior.eval()
    return prior
