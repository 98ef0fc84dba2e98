"""UNet and ControlNet: the paper's sizes, and the properties that stage 2 relies on."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lesioncast.config import load_config
from lesioncast.diffusion.blocks import channels_to_slices, slices_to_channels
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.objective import log_likelihood_ratio
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import BASE_LOG_ODDS
from lesioncast.diffusion.spatial.filters import binomial_blur, max_filter_3x3x3
from lesioncast.diffusion.unet import UNet
from lesioncast.diffusion.voxel_mlp import (
    VoxelMLP,
    VoxelRefinementHead,
    with_local_mean,
)
from tests.support.known_denoisers import CONFIGS

TINY = UNetConfig(
    slices=3, arms=2, patch=2, widths=(8, 16), attention_stages=(1,), head_dim=8, groups=4
)
PAPER_CONTROL = ControlConfig(hint_widths=(32, 96, 96, 256))


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomise(module: nn.Module) -> None:
    """Draw every parameter at random, including those that start at zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, 2, 3, 8, 8, generator=generator)
    condition = torch.randn(batch, 7, 3, 8, 8, generator=generator)
    return z, torch.linspace(-4, 4, batch), torch.arange(batch) % 3, condition


def test_paper_preset_has_589_million_parameters() -> None:
    with torch.device("meta"):
        unet = count_parameters(UNet(UNetConfig()))
        control = count_parameters(ControlNet(PAPER_CONTROL, UNetConfig()))
    assert round(unet / 1e6, 2) == 433.46
    assert round(control / 1e6, 2) == 155.67
    assert round((unet + control) / 1e6) == 589


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_networks_of_every_shipped_configuration_predict_a_slab(path: Path) -> None:
    config = load_config(path)
    with FakeTensorMode(), torch.no_grad():
        unet = UNet(config.unet)
        control = ControlNet(config.control, config.unet, config.model.covariates)
        z = torch.zeros(2, 2, *config.store.slab)
        logsnr, arm = torch.zeros(2), torch.zeros(2, dtype=torch.long)
        load = torch.ones(2, dtype=torch.long) if config.unet.lesion_load_thresholds else None
        patient = control.encode(torch.zeros(2, config.control.channels, *config.store.slab))
        residuals = control(z, logsnr, arm, patient, load)
        assert unet(z, logsnr, arm, residuals, load).shape == z.shape


def test_slices_to_channels_and_back() -> None:
    volume = torch.arange(2 * 2 * 3 * 4 * 4.0).reshape(2, 2, 3, 4, 4)
    assert torch.equal(slices_to_channels(volume, 1), volume.reshape(2, 6, 4, 4))
    assert slices_to_channels(volume, 2).shape == (2, 24, 2, 2)
    assert torch.equal(channels_to_slices(slices_to_channels(volume, 2), slices=3, patch=2), volume)


@pytest.mark.parametrize("config", [ControlConfig(), ControlConfig(burden=True, voxel_mlp_width=4)])
def test_untrained_controlnet_changes_no_bit(config: ControlConfig) -> None:
    unet = UNet(TINY)
    randomise(unet)
    control = ControlNet.from_unet(config, unet)
    z, logsnr, arm, condition = inputs()
    with torch.no_grad():
        residuals = control(z, logsnr, arm, control.encode(condition))
        assert torch.equal(unet(z, logsnr, arm, residuals), unet(z, logsnr, arm))


def test_controlnet_starts_as_a_copy_of_the_encoder() -> None:
    unet = UNet(TINY)
    randomise(unet)
    control = ControlNet.from_unet(ControlConfig(), unet)
    ours, theirs = control.encoder.state_dict(), unet.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_gradients_reach_the_controlnet_through_the_frozen_unet() -> None:
    unet = UNet(TINY)
    randomise(unet)
    unet.requires_grad_(False)
    control = ControlNet.from_unet(ControlConfig(), unet)
    z, logsnr, arm, condition = inputs()
    residuals = control(z, logsnr, arm, control.encode(condition))
    unet(z, logsnr, arm, residuals).square().mean().backward()
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all(zero.weight.grad.abs().sum() > 0 for zero in control.zero_skips)


def test_arm_and_null_arm_change_the_prediction() -> None:
    unet = UNet(TINY)
    randomise(unet)
    z, logsnr, _, _ = inputs(1)
    with torch.no_grad():
        rows = [unet(z, logsnr, torch.tensor([arm])) for arm in (0, 1, TINY.null_arm)]
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_burden_counts_lesions_and_distinguishes_missing_from_empty_channels() -> None:
    unet = UNet(TINY)
    control = ControlNet.from_unet(ControlConfig(condition=("w048/net2",), burden=True), unet)
    empty, one, absent = (torch.full((1, 1, 3, 8, 8), value) for value in (-1.0, -1.0, 0.0))
    one[0, 0, 0, 0, 0] = 1.0
    with torch.no_grad():
        burdens = [control.encode(condition).burden for condition in (empty, one, absent)]
    assert not torch.equal(burdens[0], burdens[1])
    assert not torch.equal(burdens[0], burdens[2])


def test_widths_that_are_no_multiple_of_groups_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"expected multiples of groups=32, got \[48\]"):
        UNetConfig(widths=(32, 48))


def test_blur_and_max_filter_cover_the_3d_neighbourhood() -> None:
    volume = torch.zeros(1, 5, 5, 5)
    volume[0, 2, 2, 2] = 64.0
    assert binomial_blur(volume)[0, 2, 2, 1:4].tolist() == [4.0, 8.0, 4.0]
    assert binomial_blur(torch.ones(1, 3, 4, 5)).eq(1).all()
    pooled = nn.functional.max_pool3d(volume, 3, stride=1, padding=1)
    assert torch.equal(max_filter_3x3x3(volume), pooled)


def test_gradients_of_the_filters_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(binomial_blur, (volume,))
    assert torch.autograd.gradcheck(max_filter_3x3x3, (volume,))


def test_gradient_of_the_max_filter_goes_to_one_of_equal_voxels() -> None:
    volume = torch.ones(1, 3, 4, 5, requires_grad=True)
    max_filter_3x3x3(volume).sum().backward()
    assert volume.grad is not None
    assert volume.grad.sum() == volume.numel()


def test_second_pass_of_the_voxel_head_is_mean_field_inference() -> None:
    """With weights set by hand, log odds rise with the blurred P(lesion) of the neighbours."""
    head, coupling = VoxelRefinementHead(1, embedding=4), 3.0
    nn.init.zeros_(head.second.read.weight)
    nn.init.zeros_(head.second.read.bias)
    nn.init.zeros_(head.second.embed.weight)
    nn.init.zeros_(head.second.embed.bias)
    nn.init.ones_(head.second.read.weight[:, 7:8])  # net2, five of the evidence, own, near, ...
    nn.init.constant_(head.second.write.weight, coupling)
    generator = torch.Generator().manual_seed(0)
    net2, z = (torch.randn(2, 3, 6, 5, generator=generator) for _ in range(2))
    net2, logsnr = 4 * net2 + 6, torch.tensor([-3.0, 1.0])
    with torch.no_grad():
        refined = head(net2, z, logsnr, torch.randn(2, 4, generator=generator))
    probability = torch.sigmoid(net2 + BASE_LOG_ODDS + log_likelihood_ratio(z, logsnr))
    padded = nn.functional.pad(probability[:, None], (1,) * 6, mode="replicate")
    binomial = torch.tensor([1.0, 2.0, 1.0])
    kernel = torch.einsum("i,j,k->ijk", binomial, binomial, binomial)[None, None] / 8
    around = nn.functional.conv3d(padded, kernel)[:, 0]
    assert torch.allclose(refined, net2 + coupling * around, atol=1e-4)


def test_voxel_mlp_starts_at_zero() -> None:
    mlp = VoxelMLP(5, 4, embedding=8)
    assert mlp(torch.randn(2, 5, 3, 4, 4), torch.randn(2, 8)).eq(0).all()


def test_voxel_mlp_shares_its_weights_between_voxels() -> None:
    mlp = VoxelMLP(5, 4, embedding=8)
    randomise(mlp)
    features, embedding = torch.randn(2, 5, 3, 4, 4), torch.randn(2, 8)
    hidden = mlp.read(features.movedim(1, -1)) + mlp.embed(embedding)[:, None, None, None]
    assert torch.allclose(mlp(features, embedding), mlp.write(hidden.relu()).squeeze(-1), atol=1e-6)


def test_with_local_mean_keeps_the_condition_first() -> None:
    condition = torch.randn(2, 7, 3, 4, 4)
    extended = with_local_mean(condition)
    assert extended.shape == (2, 14, 3, 4, 4)
    assert torch.equal(extended[:, :7], condition)
    assert torch.equal(extended[0, 8], binomial_blur(binomial_blur(condition[:1, 1]))[0])
