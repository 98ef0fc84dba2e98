"""A bundle: the folder that training hands to forecasting and serving.

unet.safetensors and controlnet.safetensors (averaged weights), config.json, metrics.json, README.md
(the model card) and manifest.json with the sha256 of each. The manifest's own sha256 names the
bundle. Loading it needs no flags.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lesioncast.bundle.config import SCHEMA, BundleConfig
from lesioncast.bundle.io import (
    Weights,
    digests_of,
    first_corrupt_file,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from lesioncast.bundle.model_card import model_card
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.model import LesionDiffusion, ModelConfig
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.errors import BundleError, ConfigError
from lesioncast.parsing import parse_dataclass
from storage.atomic import atomic_directory
from storage.digest import sha256_file

MANIFEST = "manifest.json"
UNET_FILE, CONTROL_FILE = "unet.safetensors", "controlnet.safetensors"
CONFIG_FILE, METRICS_FILE, CARD_FILE = "config.json", "metrics.json", "README.md"
FILES = (UNET_FILE, CONTROL_FILE, CONFIG_FILE, METRICS_FILE, CARD_FILE)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; `digest` is the sha256 of its manifest."""

    path: Path
    model: LesionDiffusion
    config: ModelConfig
    slab: tuple[int, int, int]
    spacing: tuple[float, float, float]
    sampler: SamplerConfig
    digest: str
    from_start: bool = False


def save_bundle(
    path: Path, config: BundleConfig, *, unet: Weights, control: Weights, metrics: Mapping[str, Any]
) -> str:
    """Write a bundle to `path`, replacing an older one; returns its digest.

    `unet` and `control` are the averaged weights by the networks' own names; `metrics` what is
    known of each stage, as JSON. Raises BundleError where `path` is something else than a bundle.
    """
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: expected a bundle or nothing there, got something else")
    with atomic_directory(path) as folder:
        write_tensors(folder / UNET_FILE, unet)
        write_tensors(folder / CONTROL_FILE, control)
        write_json(folder / CONFIG_FILE, asdict(config))
        write_json(folder / METRICS_FILE, metrics)
        (folder / CARD_FILE).write_text(model_card(config, metrics))
        write_json(folder / MANIFEST, {"schema": SCHEMA, "sha256": digests_of(folder, FILES)})
    return bundle_digest(path)


def bundle_digest(path: Path) -> str:
    """The digest that names the bundle at `path`."""
    return sha256_file(path / MANIFEST)


def load_bundle(path: Path, *, device: torch.device | str = "cpu") -> Bundle:
    """The bundle at `path` with its networks on `device`, in evaluation mode.

    Raises BundleError, naming the file, where one is missing, altered or of another kind.
    """
    _verify(path)
    config = _read_config(path)
    unet = UNet(config.model.unet)
    unet.load_state_dict(read_tensors(path / UNET_FILE))
    control = ControlNet(config.model.control, config.model.unet, config.model.covariates)
    control.load_state_dict(read_tensors(path / CONTROL_FILE))
    return Bundle(
        path=path,
        model=LesionDiffusion(unet.to(device), control.to(device), config.model),
        config=config.model,
        slab=config.slab,
        spacing=config.spacing,
        sampler=config.sampler,
        digest=bundle_digest(path),
        from_start=config.from_start,
    )


def _verify(path: Path) -> None:
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path}: expected a bundle with {MANIFEST}, got none; run finetune.py")
    manifest = read_json(path / MANIFEST)
    if manifest.get("schema") != SCHEMA or set(manifest.get("sha256", ())) != set(FILES):
        raise BundleError(
            f"{path / MANIFEST}: expected schema {SCHEMA} and the files {', '.join(FILES)}, "
            f"got schema {manifest.get('schema')} and {', '.join(manifest.get('sha256', ()))}"
        )
    altered = first_corrupt_file(path, manifest["sha256"])
    if altered is not None:
        raise BundleError(
            f"{path / altered}: missing, or not the file that {MANIFEST} was written for; "
            "copy the bundle again or run finetune.py"
        )


def _read_config(path: Path) -> BundleConfig:
    try:
        return parse_dataclass(
            BundleConfig, read_json(path / CONFIG_FILE), source=str(path / CONFIG_FILE)
        )
    except ConfigError as error:
        raise BundleError(str(error)) from error
