"""Our networks against those of diffusers and MONAI, which are given our weights.

Both libraries have a second residual block in the middle, MONAI also attention; with their last
layers at zero these pass their input on, which leaves the one block that ours has.
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
from lesioncast.diffusion.controlnet import ControlConfig, ControlNet
from lesioncast.diffusion.unet import Encoder, UNet, UNetConfig

CONFIG = UNetConfig(
    slices=3, arms=2, widths=(8, 16, 16, 24), attention_stages=(2, 3), head_dim=8, groups=4
)
CONTROL = ControlConfig(hint_widths=(12,))
LAST = len(CONFIG.widths) - 1
ATTENTION = [stage in CONFIG.attention_stages for stage in range(LAST + 1)]
QUIET = 0.01  # features of a variance where the epsilon of a normalisation, 1e-5, still tells


def stir(module: nn.Module) -> None:
    """Random weights that keep the size of what passes, so that the deepest layer still tells."""
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            mean = 1.0 if isinstance(layer, nn.GroupNorm) and name == "weight" else 0.0
            nn.init.normal_(parameter, mean, fan_in**-0.5)


def copy(theirs: nn.Module, ours: nn.Module) -> None:
    """Give the one layer inside `theirs` the weights of `ours`."""
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
    """Query, key and value are three layers in the libraries and one in ours."""
    of_diffusers = isinstance(theirs, Attention)
    inner = theirs if of_diffusers else theirs.attn
    copy(theirs.group_norm if of_diffusers else theirs.norm, ours.norm)
    copy(inner.to_out[0] if of_diffusers else inner.out_proj, ours.out)
    parts = zip(ours.qkv.weight.flatten(1).chunk(3), ours.qkv.bias.chunk(3), strict=True)
    for layer, (weight, bias) in zip((inner.to_q, inner.to_k, inner.to_v), parts, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})


def layers(stages: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Residual blocks with their attention, and what halves or doubles, in the order they run."""
    for stage in stages:
        named = dict(stage.named_children())
        attentions = named.get("attentions", [None] * len(stage.resnets))
        yield from zip(stage.resnets, attentions, strict=True)
        for name in ("downsampler", "upsampler", "downsamplers", "upsamplers"):
            if name in named:
                yield named[name], None


def copy_steps(stages: Iterable[nn.Module], ours: nn.ModuleList) -> None:
    """Give the stages of one path the weights of ours; the layouts must be the same."""
    for step, (layer, attention) in zip(ours, layers(stages), strict=True):
        if not isinstance(step, ResAttnBlock):
            copy(layer, step)
            continue
        copy_residual(layer, step.residual)
        assert (attention is None) == (step.attention is None)
        if attention is not None:
            copy_attention(attention, step.attention)


class Given(nn.Module):
    """A layer whose output was computed elsewhere."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, _: Tensor) -> Tensor:
        return self.output


class Sinusoids(nn.Module):
    """diffusers' features with our periods, from 1 to 256."""

    def forward(self, logsnr: Tensor) -> Tensor:
        return get_timestep_embedding(
            logsnr, CONFIG.widths[0], scale=2 * math.pi, downscale_freq_shift=1, max_period=256
        )


def our_unet() -> UNet:
    torch.manual_seed(0)
    unet = UNet(CONFIG).eval()
    stir(unet)
    return unet


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """z, logsnr and arm, the null arm among them."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 2, 3, 16, 16, generator=generator)
    return z, torch.tensor([-4.0, 0.3, 5.0]), torch.tensor([0, 1, CONFIG.null_arm])


@pytest.mark.parametrize("width_out", [16, 24])
@torch.no_grad()
def test_a_residual_block_is_that_of_diffusers(width_out: int) -> None:
    ours = ResBlock(16, width_out, embedding=12, groups=4)
    stir(ours)
    theirs = ResnetBlock2D(
        in_channels=16, out_channels=width_out, temb_channels=12, groups=4, eps=1e-5
    )
    copy_residual(theirs, ours)
    features, embedding = QUIET * torch.randn(2, 16, 8, 8), torch.randn(2, 12)
    torch.testing.assert_close(ours(features, embedding), theirs(features, embedding))


@torch.no_grad()
def test_self_attention_is_that_of_diffusers() -> None:
    ours = SelfAttention(24, head_dim=8, groups=4)
    stir(ours)
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
    features = QUIET * torch.randn(2, 24, 4, 6)
    torch.testing.assert_close(ours(features), theirs(features))


@torch.no_grad()
def test_halving_and_doubling_are_those_of_diffusers() -> None:
    halve, double = Encoder(CONFIG).steps[CONFIG.down_blocks], Upsample(8)
    their_half, their_double = Downsample2D(8, use_conv=True), Upsample2D(8, use_conv=True)
    copy(their_half, halve)
    copy(their_double, double)
    features = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(halve(features), their_half(features))
    torch.testing.assert_close(double(features), their_double(features))


def test_the_noise_level_enters_through_the_sinusoids_of_diffusers() -> None:
    logsnr = torch.linspace(-17, 15, 33)
    torch.testing.assert_close(
        noise_level_embedding(logsnr, CONFIG.widths[0]), Sinusoids()(logsnr), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_the_unet_is_that_of_diffusers_with_the_arm_as_its_class() -> None:
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
    """Give MONAI's contraction path our weights; of the noise level it takes our embedding."""
    theirs.time_embed = Given(ours.embedding.time(noise_level_embedding(logsnr, CONFIG.widths[0])))
    copy(theirs.class_embedding, ours.embedding.arm)
    copy(theirs.conv_in, ours.conv_in)
    copy_steps(theirs.down_blocks, ours.steps)
    copy_residual(theirs.middle_block.resnet_1, ours.middle.residual)
    zero_module(theirs.middle_block.attention.attn.out_proj)
    zero_module(theirs.middle_block.resnet_2.conv2)


@torch.no_grad()
def test_the_controlnet_steers_the_unet_as_monais_does() -> None:
    """All of stage 2 at weights far from its start: hint, copy of the encoder, convolutions of each
    skip, sums with the UNet's skips and middle. MONAI's hint keeps its resolution at one width."""
    unet = our_unet()
    control = ControlNet.from_unet(CONTROL, unet).eval()
    stir(control)
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
    for found, expected in zip([*residuals.skips, residuals.middle], [*skips, middle], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    expected = their_unet(
        slices_to_channels(z, 1),
        logsnr,
        class_labels=arm,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
    )
    steered = slices_to_channels(unet(z, logsnr, arm, residuals), 1)
    torch.testing.assert_close(steered, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(steered, slices_to_channels(unet(z, logsnr, arm), 1), atol=1e-2)
