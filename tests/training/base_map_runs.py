"""A small store, networks on a base map, and a bundle of them that was not trained."""

from dataclasses import replace
from pathlib import Path

import torch

from lesioncast.bundle.bundle import save_bundle
from lesioncast.bundle.config import BundleConfig
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.training.experiment import Experiment, experiment_of
from lesioncast.training.spatial.fit import with_fitted_base
from storage import Store
from tests.support.bids import ARMS
from tests.support.forecast import SETTINGS, UNET

MODEL = ModelConfig(
    ARMS,
    replace(UNET, lesion_load_thresholds=(1, 4, 9), base_map=True, voxel_head_width=4),
    objective=ObjectiveConfig(
        prediction="log_odds", mask_loss="cross_entropy", weighting="x", lesion_weight=1.0
    ),
)
SAMPLER = SamplerConfig(
    solver="sde-dpmsolver++", num_steps=12, spacing="logsnr", logsnr_min=-4, logsnr_max=8
)


def base_map_experiment(store: Store, runs: Path, *, seed: int = 0) -> Experiment:
    """Return an experiment without a fitted prior; its runs and its cache lie below `runs`."""
    own = experiment_of(store, runs, model=MODEL, seed=seed)
    return replace(own, cases=replace(own.cases, roots=(runs / "cache",)))


def write_base_map_bundle(path: Path, store: Store, *, seed: int = 0, noise: float = 0.0) -> None:
    """Write a bundle whose networks add nothing but `noise` to the base map fitted to the store."""
    experiment = base_map_experiment(store, path.parent / "runs", seed=seed)
    base = with_fitted_base(experiment, store).base
    assert base is not None
    torch.manual_seed(seed)
    unet = UNet(MODEL.unet)
    control = ControlNet.from_unet(MODEL.control, unet)
    with torch.no_grad():
        for parameter in (*unet.parameters(), *control.parameters()) if noise else ():
            parameter.add_(noise * torch.randn_like(parameter))
    config = BundleConfig(MODEL, SETTINGS, SAMPLER, simulated=False, brain_mask_share=0.0)
    save_bundle(
        path,
        config,
        unet=unet.state_dict(),
        control=control.state_dict(),
        metrics={"data": "20 active cases of a made-up trial.", "cases": [], "stages": {}},
        base=base.path,
    )
