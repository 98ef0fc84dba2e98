"""Building blocks of the UNet and the ControlNet (Dhariwal and Nichol 2021, section 3)."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def zero_module(module: ModuleT) -> ModuleT:
    """Set every parameter of `module` to zero and return the module."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def slices_to_channels(volume: Tensor, patch: int) -> Tensor:
    """Move slices, and patch x patch voxels, into channels.

    [b, c, s, h, w] -> [b, c*s*p*p, h/p, w/p]. Patch 1 is the paper's pseudo-2D slab (section 2,
    stage 1).
    """
    return functional.pixel_unshuffle(volume.flatten(1, 2), patch)


def channels_to_slices(features: Tensor, *, slices: int, patch: int) -> Tensor:
    """Invert `slices_to_channels`: [b, c*s*p*p, h/p, w/p] -> [b, c, s, h, w]."""
    shuffled = functional.pixel_shuffle(features, patch)
    batch, channels, height, width = shuffled.shape
    return shuffled.reshape(batch, channels // slices, slices, height, width)


def noise_level_embedding(logsnr: Tensor, width: int) -> Tensor:
    """Return sine and cosine features of logsnr [b] at periods from 1 to 256 nats, [b, width]."""
    periods = torch.logspace(0, 8, width // 2, base=2.0, device=logsnr.device)
    angle = 2 * math.pi * logsnr[:, None].float() / periods
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class ResBlock(nn.Module):
    """Residual block: GroupNorm, SiLU and convolution, twice.

    The embedding is added between the two. The shortcut is the identity, or a 1x1 convolution if
    the width changes. The last convolution starts at zero, so that the block starts as its
    shortcut.
    """

    def __init__(self, width_in: int, width_out: int, *, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, width_in)
        self.conv_in = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.embed = nn.Linear(embedding, width_out)
        self.norm_out = nn.GroupNorm(groups, width_out)
        self.conv_out = zero_module(nn.Conv2d(width_out, width_out, 3, padding=1))
        self.shortcut = (
            nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        )

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return features [b, width_out, h, w] from [b, width_in, h, w] and an embedding [b, e]."""
        hidden: Tensor = self.conv_in(functional.silu(self.norm_in(features)))
        hidden = hidden + self.embed(functional.silu(embedding))[:, :, None, None]
        hidden = self.conv_out(functional.silu(self.norm_out(hidden)))
        out: Tensor = hidden + self.shortcut(features)
        return out


class SelfAttention(nn.Module):
    """Residual self-attention over the positions of a feature map. It starts as the identity."""

    def __init__(self, width: int, *, head_dim: int, groups: int) -> None:
        super().__init__()
        self.heads = max(1, width // head_dim)
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = zero_module(nn.Conv2d(width, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the shape of `features` [b, width, h, w]."""
        batch, width, *size = features.shape
        # [b, 3*c, h, w] -> three of [b, heads, h*w, c/heads]
        qkv = self.qkv(self.norm(features)).reshape(batch, 3, self.heads, width // self.heads, -1)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(1))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        # [b, heads, h*w, c/heads] -> [b, c, h, w]
        attended: Tensor = self.out(mixed.transpose(-1, -2).reshape(batch, width, *size))
        return features + attended


class ResAttnBlock(nn.Module):
    """Residual block, followed by self-attention if `head_dim` is given."""

    def __init__(
        self, width_in: int, width_out: int, *, embedding: int, groups: int, head_dim: int | None
    ) -> None:
        super().__init__()
        self.residual = ResBlock(width_in, width_out, embedding=embedding, groups=groups)
        self.attention = (
            SelfAttention(width_out, head_dim=head_dim, groups=groups) if head_dim else None
        )

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return features [b, width_out, h, w] from [b, width_in, h, w] and an embedding [b, e]."""
        hidden: Tensor = self.residual(features, embedding)
        return self.attention(hidden) if self.attention else hidden


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return features [b, width, 2h, 2w] from [b, width, h, w]."""
        upsampled: Tensor = self.conv(functional.interpolate(features, scale_factor=2.0))
        return upsampled
