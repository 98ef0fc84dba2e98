"""The treatment-conditioned UNet of stage 1 (paper, section 2; encoder path of ADM).

`Encoder` is the contraction path with its time and arm embedding: the UNet owns one, and the
ControlNet of stage 2 trains a copy of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lesioncast.diffusion.blocks import (
    ResAttnBlock,
    Upsample,
    channels_to_slices,
    noise_level_embedding,
    slices_to_channels,
    zero_module,
)
from lesioncast.diffusion.voxel_mlp import VoxelRefinementHead


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network; the defaults are the paper's.

    Section 3 names the slices, six stages from 256 to 8 voxels, attention at 16 and 8, and 589 M
    parameters with the ControlNet; widths and blocks are our reading, the layout that counts so.
    `patch` > 1 folds patch x patch voxels into channels before the first convolution, which makes
    small machines faster; the paper's is 1. `attention_stages` counts stages from 0. `head` is the
    width of a `VoxelHead` that refines the NET2 output; 0 is the paper's plain output. `loads` are
    the least NET2 voxels of each class of lesion load above none (`load`); without any, as in the
    paper, the networks are told of none.
    """

    slices: int = 15
    arms: int = 6
    patch: int = 1
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    down_blocks: int = 2
    attention_stages: tuple[int, ...] = (4, 5)
    head_dim: int = 64
    groups: int = 32
    target_channels: int = 2
    voxel_head_width: int = 0
    lesion_load_thresholds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        uneven = [width for width in self.widths if width % self.groups]
        if uneven:
            raise ValueError(f"widths must be multiples of groups={self.groups}, got {uneven}")
        rising = list(self.lesion_load_thresholds) == sorted(set(self.lesion_load_thresholds))
        if self.lesion_load_thresholds and not (rising and self.lesion_load_thresholds[0] == 1):
            raise ValueError(
                "lesion_load_thresholds: expected voxels that rise from 1, got "
                f"{list(self.lesion_load_thresholds)}; such as [1, 10, 30, 100]"
            )

    @property
    def folded_channels(self) -> int:
        """Channels of a folded target: target_channels * slices * patch^2."""
        return self.target_channels * self.slices * self.patch**2

    @property
    def embedding(self) -> int:
        """Width of the time and arm embedding."""
        return 4 * self.widths[0]

    @property
    def null_arm(self) -> int:
        """Row of the arm table that means "no arm given"."""
        return self.arms

    @property
    def lesion_load_classes(self) -> int:
        """Classes of lesion load, with that of none."""
        return len(self.lesion_load_thresholds) + 1

    def skip_widths(self) -> list[int]:
        """Widths of the encoder's skip tensors, first to last."""
        widths = [self.widths[0]]
        for stage, width in enumerate(self.widths):
            widths += [width] * self.down_blocks
            if stage < len(self.widths) - 1:
                widths.append(width)
        return widths

    def block(self, stage: int, width_in: int) -> ResAttnBlock:
        """One block of `stage`, with attention where the stage has it."""
        return ResAttnBlock(
            width_in,
            self.widths[stage],
            embedding=self.embedding,
            groups=self.groups,
            head_dim=self.head_dim if stage in self.attention_stages else None,
        )


class ConditionEmbedding(nn.Module):
    """logsnr through sinusoids and an MLP, plus a learned row per arm (section 2, stage 1).

    And one per class of lesion load, where the networks are told it.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.width = config.widths[0]
        self.time = nn.Sequential(
            nn.Linear(self.width, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.arm = nn.Embedding(config.arms + 1, config.embedding)
        self.load = (
            nn.Embedding(config.lesion_load_classes, config.embedding)
            if config.lesion_load_thresholds
            else None
        )

    def forward(self, logsnr: Tensor, arm: Tensor, load: Tensor | None = None) -> Tensor:
        embedding: Tensor = self.time(noise_level_embedding(logsnr, self.width)) + self.arm(arm)
        return embedding if self.load is None else embedding + self.load(load)


class Encoder(nn.Module):
    """The contraction path and the middle block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.embedding = ConditionEmbedding(config)
        self.conv_in = nn.Conv2d(config.folded_channels, config.widths[0], 3, padding=1)
        self.steps = nn.ModuleList()
        width = config.widths[0]
        for stage, stage_width in enumerate(config.widths):
            for _ in range(config.down_blocks):
                self.steps.append(config.block(stage, width))
                width = stage_width
            if stage < len(config.widths) - 1:
                self.steps.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.middle = ResAttnBlock(
            width, width, embedding=config.embedding, groups=config.groups, head_dim=None
        )

    def forward(
        self, z: Tensor, embedding: Tensor, hint: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Skips and the middle of z [b, c, s, h, w]; `hint` is added after the first layer."""
        features = self.conv_in(slices_to_channels(z, self.patch))
        if hint is not None:
            features = features + hint
        skips = [features]
        for step in self.steps:
            features = (
                step(features, embedding) if isinstance(step, ResAttnBlock) else step(features)
            )
            skips.append(features)
        return skips, self.middle(features, embedding)


@dataclass(frozen=True)
class ControlNetOutput:
    """What a ControlNet adds to the UNet: one tensor per skip, one for the middle, and to NET2."""

    skips: Sequence[Tensor]
    middle: Tensor
    net2: Tensor | None = None


class UNet(nn.Module):
    """Predicts v (or eps, x) of FLAIR and NET2 at week 96, jointly, from z_t, logsnr and arm."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.steps = nn.ModuleList()
        skips = config.skip_widths()
        width = config.widths[-1]
        for stage in reversed(range(len(config.widths))):
            for _ in range(config.down_blocks + 1):
                self.steps.append(config.block(stage, width + skips.pop()))
                width = config.widths[stage]
            if stage > 0:
                self.steps.append(Upsample(width))
        self.out = nn.Sequential(
            nn.GroupNorm(config.groups, width),
            nn.SiLU(),
            zero_module(nn.Conv2d(width, config.folded_channels, 3, padding=1)),
        )
        self.head = (
            VoxelRefinementHead(config.voxel_head_width, embedding=config.embedding)
            if config.voxel_head_width
            else None
        )

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        residuals: ControlNetOutput | None = None,
        load: Tensor | None = None,
    ) -> Tensor:
        """The prediction [b, 2, s, h, w] for z of that shape, logsnr [b], arm [b] (row numbers).

        `load` [b] is the class of lesion load that the sample is to have.
        """
        embedding = self.encoder.embedding(logsnr, arm, load)
        skips, features = self.encoder(z, embedding)
        if residuals is not None:
            skips = [a + b for a, b in zip(skips, residuals.skips, strict=True)]
            features = features + residuals.middle
        for step in self.steps:
            if isinstance(step, ResAttnBlock):
                features = step(torch.cat([features, skips.pop()], dim=1), embedding)
            else:
                features = step(features)
        # In bfloat16 the step next to -1 is 1/128: a lesion probability of 1 in 1000 would be lost.
        with torch.autocast(z.device.type, enabled=False):
            out = channels_to_slices(
                self.out(features.float()), slices=self.config.slices, patch=self.config.patch
            )
            flair, net2 = out.unbind(1)
            if residuals is not None and residuals.net2 is not None:
                net2 = net2 + residuals.net2
            if self.head is not None:
                net2 = self.head(net2, z[:, 1], logsnr, embedding.float())
        return torch.stack([flair, net2], dim=1)
