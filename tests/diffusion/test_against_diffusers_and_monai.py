"""Compare our networks with those of diffusers and MONAI after copying our weights into them.

Both libraries have a second residual block in the middle, and MONAI has attention there too. With
their last layers at zero these are the identity, which leaves the one block that our network has.
"""

import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from monai.networks.nets import ControlNet as MonaiControlNet
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from lesioncast.diffusion.blocks import (
    ResAttnBlock,
    ResBlock,
    SelfAttention,
    Upsample,
    noise_level_embedding,
    slices_to_channels,
    zero_module,
)
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.unet import Encoder, UNet

CONFIG = UNetConfig(
    slices=3, arms=2, widths=(8, 16, 16, 24), attention_stages=(2, 3), head_dim=8, groups=4
)
CONTROL = ControlConfig(hint_widths=(12,))
LAST = len(CONFIG.widths) - 1
ATTENTION = [stage in CONFIG.attention_stages for stage in range(LAST + 1)]
SMALL = 0.01  # scale of features at which the epsilon of a normalisation, 1e-5, matters


def randomise_scaled(module: nn.Module) -> None:
    """Draw random weights that keep the scale of features, so that deep layers matter too."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            mean = 1.0 if isinstance(layer, nn.GroupNorm) and name == "weight" else 0.0
            nn.init.normal_(parameter, mean, fan_in**-0.5)


def copy(theirs: nn.Module, ours: nn.Module) -> None:
    """Copy the weights of the one layer of `ours` into the one layer of `theirs`."""
    layers = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.Embedding)
    (layer,) = [module for module in theirs.modules() if isinstance(module, layers)]
    (own,) = [module for module in ours.modules() if isinstance(module, layers)]
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(own.get_parameter(name).reshape(parameter.shape))


def copy_residual(theirs: nn.Module, ours: ResBlock) -> None:
    copy(theirs.norm1, ours.norm_in)
    copy(theirs.conv1, ours.conv_in)
    copy(theirs.time_emb_proj, ours.embed)
    copy(theirs.norm2, ours.norm_out)
    copy(theirs.conv2, ours.conv_out)
    if not isinstance(ours.shortcut, nn.Identity):
        named = "conv_shortcut" if isinstance(theirs, ResnetBlock2D) else "skip_connection"
        copy(theirs.get_submodule(named), ours.shortcut)


def copy_attention(theirs: nn.Module, ours: SelfAttention) -> None:
    """Copy our attention, in which query, key and value are one layer instead of three."""
    of_diffusers = isinstance(theirs, Attention)
    inner = theirs if of_diffusers else theirs.attn
    copy(theirs.group_norm if of_diffusers else theirs.norm, ours.norm)
    copy(inner.to_out[0] if of_diffusers else inner.out_proj, ours.out)
    parts = zip(ours.qkv.weight.flatten(1).chunk(3), ours.qkv.bias.chunk(3), strict=True)
    for layer, (weight, bias) in zip((inner.to_q, inner.to_k, inner.to_v), parts, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})


def layers(stages: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Yield residual blocks with their attention, and resampling layers, in the order they run."""
    for stage in stages:
        named = dict(stage.named_children())
        attentions = named.get("attentions", [None] * len(stage.resnets))
        yield from zip(stage.resnets, attentions, strict=True)
        for name in ("downsampler", "upsampler", "downsamplers", "upsamplers"):
            if name in named:
                yield named[name], None


def copy_steps(stages: Iterable[nn.Module], ours: nn.ModuleList) -> None:
    """Copy the weights of one path of ours into their stages. The layouts must be equal."""
    for step, (layer, attention) in zip(ours, layers(stages), strict=True):
        if not isinstance(step, ResAttnBlock):
            copy(layer, step)
            continue
        copy_residual(layer, step.residual)
        assert (attention is None) == (step.attention is None)
        if attention is not None:
            copy_attention(attention, step.attention)


class FixedOutput(nn.Module):
    """Layer that returns an output that was computed before."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, _: Tensor) -> Tensor:
        return self.output


class Sinusoids(nn.Module):
    """Features of diffusers with our periods, from 1 to 256."""

    def forward(self, logsnr: Tensor) -> Tensor:
        return get_timestep_embedding(
            logsnr, CONFIG.widths[0], scale=2 * math.pi, downscale_freq_shift=1, max_period=256
        )


def our_unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval()
    randomise_scaled(unet)
    return unet


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return z, logsnr and arms, including the null arm."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 2, 3, 16, 16, generator=generator)
    return z, torch.tensor([-4.0, 0.3, 5.0]), torch.tensor([0, 1, CONFIG.null_arm])


@pytest.mark.parametrize("width_out", [16, 24])
@torch.no_grad()
def test_residual_block_equals_that_of_diffusers(width_out: int) -> None:
    ours = ResBlock(16, width_out, embedding=12, groups=4)
    randomise_scaled(ours)
    theirs = ResnetBlock2D(
        in_channels=16, out_channels=width_out, temb_channels=12, groups=4, eps=1e-5
    )
    copy_residual(theirs, ours)
    features, embedding = SMALL * torch.randn(2, 16, 8, 8), torch.randn(2, 12)
    torch.testing.assert_close(ours(features, embedding), theirs(features, embedding))


@torch.no_grad()
def test_self_attention_equals_that_of_diffusers() -> None:
    ours = SelfAttention(24, head_dim=8, groups=4)
    randomise_scaled(ours)
    theirs = Attention(
        24,
        heads=3,
        dim_head=8,
        eps=1e-5,
        norm_num_groups=4,
        residual_connection=True,
        bias=True,
    )
    copy_attention(theirs, ours)
    features = SMALL * torch.randn(2, 24, 4, 6)
    torch.testing.assert_close(ours(features), theirs(features))


@torch.no_grad()
def test_downsampling_and_upsampling_equal_those_of_diffusers() -> None:
    downsample, upsample = Encoder(CONFIG).steps[CONFIG.down_blocks], Upsample(8)
    their_downsample, their_upsample = Downsample2D(8, use_conv=True), Upsample2D(8, use_conv=True)
    copy(their_downsample, downsample)
    copy(their_upsample, upsample)
    features = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(downsample(features), their_downsample(features))
    torch.testing.assert_close(upsample(features), their_upsample(features))


def test_noise_level_embedding_equals_that_of_diffusers() -> None:
    logsnr = torch.linspace(-17, 15, 33)
    torch.testing.assert_close(
        noise_level_embedding(logsnr, CONFIG.widths[0]), Sinusoids()(logsnr), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_unet_equals_that_of_diffusers_with_the_arm_as_class() -> None:
    ours = our_unet()
    theirs = UNet2DModel(
        in_channels=CONFIG.folded_channels,
        out_channels=CONFIG.folded_channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in ATTENTION),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(ATTENTION)),
        block_out_channels=CONFIG.widths,
        layers_per_block=CONFIG.down_blocks,
        attention_head_dim=CONFIG.head_dim,
        norm_num_groups=CONFIG.groups,
        add_attention=False,
        num_class_embeds=CONFIG.arms + 1,
    ).eval()
    theirs.time_proj = Sinusoids()
    copy(theirs.time_embedding.linear_1, ours.encoder.embedding.time[0])
    copy(theirs.time_embedding.linear_2, ours.encoder.embedding.time[2])
    copy(theirs.class_embedding, ours.encoder.embedding.arm)
    copy(theirs.conv_in, ours.encoder.conv_in)
    copy_steps(theirs.down_blocks, ours.encoder.steps)
    copy_residual(theirs.mid_block.resnets[0], ours.encoder.middle.residual)
    zero_module(theirs.mid_block.resnets[1].conv2)
    copy_steps(theirs.up_blocks, ours.steps)
    copy(theirs.conv_norm_out, ours.out[0])
    copy(theirs.conv_out, ours.out[2])

    z, logsnr, arm = inputs()
    expected = theirs(slices_to_channels(z, 1), logsnr, class_labels=arm).sample
    torch.testing.assert_close(
        slices_to_channels(ours(z, logsnr, arm), 1), expected, atol=1e-4, rtol=1e-4
    )


def monai_sizes() -> dict[str, object]:
    return {
        "spatial_dims": 2,
        "in_channels": CONFIG.folded_channels,
        "num_res_blocks": CONFIG.down_blocks,
        "channels": CONFIG.widths,
        "attention_levels": ATTENTION,
        "norm_num_groups": CONFIG.groups,
        "norm_eps": 1e-5,
        "num_head_channels": CONFIG.head_dim,
        "num_class_embeds": CONFIG.arms + 1,
    }


def copy_encoder(theirs: nn.Module, ours: Encoder, logsnr: Tensor) -> None:
    """Copy our weights into MONAI's contracting path, which takes our noise level embedding."""
    theirs.time_embed = FixedOutput(
        ours.embedding.time(noise_level_embedding(logsnr, CONFIG.widths[0]))
    )
    copy(theirs.class_embedding, ours.embedding.arm)
    copy(theirs.conv_in, ours.conv_in)
    copy_steps(theirs.down_blocks, ours.steps)
    copy_residual(theirs.middle_block.resnet_1, ours.middle.residual)
    zero_module(theirs.middle_block.attention.attn.out_proj)
    zero_module(theirs.middle_block.resnet_2.conv2)


@torch.no_grad()
def test_controlnet_equals_that_of_monai() -> None:
    """Cover all of stage 2 with random weights, from the hint to the sums with the UNet's skips.

    MONAI's hint keeps its resolution if it has one width.
    """
    unet = our_unet()
    control = ControlNet.from_unet(CONTROL, unet).eval()
    randomise_scaled(control)
    z, logsnr, arm = inputs()
    condition = torch.randn(3, CONTROL.channels, 3, 16, 16)

    their_control = MonaiControlNet(
        **monai_sizes(),
        conditioning_embedding_in_channels=3 * CONTROL.channels,
        conditioning_embedding_num_channels=CONTROL.hint_widths,
    ).eval()
    copy_encoder(their_control, control.encoder, logsnr)
    copy(their_control.controlnet_cond_embedding.conv_in, control.hint[0])
    copy(their_control.controlnet_cond_embedding.conv_out, control.hint[2])
    for theirs, ours in zip(their_control.controlnet_down_blocks, control.zero_skips, strict=True):
        copy(theirs, ours)
    copy(their_control.controlnet_mid_block, control.zero_middle)
    their_unet = DiffusionModelUNet(**monai_sizes(), out_channels=CONFIG.folded_channels).eval()
    copy_encoder(their_unet, unet.encoder, logsnr)
    copy_steps(their_unet.up_blocks, unet.steps)
    copy(their_unet.out[0], unet.out[0])
    copy(their_unet.out[2], unet.out[2])

    residuals = control(z, logsnr, arm, control.encode(condition))
    skips, middle = their_control(
        slices_to_channels(z, 1), logsnr, slices_to_channels(condition, 1), class_labels=arm
    )
    for ours, theirs in zip([*residuals.skips, residuals.middle], [*skips, middle], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    expected = their_unet(
        slices_to_channels(z, 1),
        logsnr,
        class_labels=arm,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
    )
    controlled = slices_to_channels(unet(z, logsnr, arm, residuals), 1)
    torch.testing.assert_close(controlled, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(controlled, slices_to_channels(unet(z, logsnr, arm), 1), atol=1e-2)
