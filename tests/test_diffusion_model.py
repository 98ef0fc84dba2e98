"""The composed denoiser: guidance, the null condition, and masks that a seed names."""

import torch
from test_diffusion_networks import TINY, randomise

from lesioncast.diffusion.controlnet import ControlConfig, ControlNet
from lesioncast.diffusion.model import Model, ModelConfig
from lesioncast.diffusion.objective import ObjectiveConfig
from lesioncast.diffusion.sampler import SamplerConfig
from lesioncast.diffusion.unet import UNet


def tiny_model(lesion_weight: float = 1.0) -> Model:
    torch.manual_seed(0)
    unet = UNet(TINY)
    randomise(unet)
    control = ControlNet.from_unet(ControlConfig(burden=True), unet)
    randomise(control)
    objective = ObjectiveConfig(prediction="odds", base_log_odds=0.0, lesion_weight=lesion_weight)
    config = ModelConfig(("a", "b"), TINY, ControlConfig(burden=True), objective=objective)
    return Model(unet, control, config)


def case(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(batch, 7, 3, 8, 8, generator=generator)
    return condition, torch.arange(batch) % 2, torch.randn(batch, 2, 3, 8, 8, generator=generator)


@torch.no_grad()
def test_guidance_extrapolates_from_the_null_arm_with_the_null_image() -> None:
    model, (condition, arm, z) = tiny_model(), case()
    logsnr = torch.zeros(3)
    null = torch.full_like(arm, TINY.null_arm)
    conditional = model.denoiser(condition, arm, guidance=1.0)(z, logsnr)
    unconditional = model.denoiser(torch.zeros_like(condition), null, guidance=1.0)(z, logsnr)
    assert torch.equal(model.denoiser(condition, arm, guidance=0.0)(z, logsnr), unconditional)
    halfway = model.denoiser(condition, arm, guidance=0.5)(z, logsnr)
    assert torch.allclose(halfway, (conditional + unconditional) / 2, atol=1e-5)


@torch.no_grad()
def test_the_lesion_weight_is_taken_out_of_net2_alone() -> None:
    condition, arm, z = case()
    logsnr = torch.zeros(3)
    plain = tiny_model(1.0).denoiser(condition, arm, guidance=1.0)(z, logsnr)
    weighted = tiny_model(10.0).denoiser(condition, arm, guidance=1.0)(z, logsnr)
    assert torch.equal(plain[:, 0], weighted[:, 0])
    assert (weighted[:, 1] <= plain[:, 1]).all()


def test_the_same_seed_draws_the_same_mask_and_another_seed_another() -> None:
    model, (condition, arm, _) = tiny_model(), case(1)
    sampler = SamplerConfig(solver="dpm2m", num_steps=4, grid="logsnr")
    first, again, other = (model.draw(condition, arm, [seed], sampler) for seed in (5, 5, 6))
    assert first.shape == (1, 3, 8, 8)
    assert first.dtype == torch.bool
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
