"""Treatment-conditioned UNet of stage 1 (paper, section 2; encoder path of ADM).

`Encoder` is the contracting path with the embedding of noise level and arm. The UNet owns one
encoder, and the ControlNet of stage 2 trains a copy of it.
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
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.networks import UNetConfig
from lesioncast.diffusion.voxel_mlp import VoxelRefinementHead


def stage_block(config: UNetConfig, stage: int, width_in: int) -> ResAttnBlock:
    """Return a new block of `stage`, with attention if the stage has it."""
    return ResAttnBlock(
        width_in,
        config.widths[stage],
        embedding=config.embedding,
        groups=config.groups,
        head_dim=config.head_dim if stage in config.attention_stages else None,
    )


class ConditionEmbedding(nn.Module):
    """Embedding of noise level, arm and lesion load (paper, section 2, stage 1).

    The noise level passes through sinusoids and an MLP. Each arm, and each lesion load class if the
    model has them, adds a learned vector.
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
        self.lesion_load = (
            nn.Embedding(config.lesion_load_classes, config.embedding)
            if config.lesion_load_thresholds
            else None
        )

    def forward(self, logsnr: Tensor, arm: Tensor, lesion_load: Tensor | None = None) -> Tensor:
        """Return the embedding [b, e] of logsnr, arm and lesion load class, [b] each."""
        embedding: Tensor = self.time(noise_level_embedding(logsnr, self.width)) + self.arm(arm)
        return embedding if self.lesion_load is None else embedding + self.lesion_load(lesion_load)


class Encoder(nn.Module):
    """Contracting path of the UNet and its middle block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.embedding = ConditionEmbedding(config)
        self.conv_in = nn.Conv2d(config.folded_channels, config.widths[0], 3, padding=1)
        self.steps = nn.ModuleList()
        width = config.widths[0]
        for stage, stage_width in enumerate(config.widths):
            for _ in range(config.down_blocks):
                self.steps.append(stage_block(config, stage, width))
                width = stage_width
            if stage < len(config.widths) - 1:
                self.steps.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        self.middle = ResAttnBlock(
            width, width, embedding=config.embedding, groups=config.groups, head_dim=None
        )

    def forward(
        self, z: Tensor, embedding: Tensor, hint: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the skip tensors and the middle features of z [b, 2, s, h, w].

        `hint` is added to the output of the first layer.
        """
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
    """Residuals that a ControlNet adds to the UNet's skips, middle features and NET2 output."""

    skips: Sequence[Tensor]
    middle: Tensor
    net2: Tensor | None = None


class UNet(nn.Module):
    """Network that predicts FLAIR and NET2 of the outcome jointly, from z_t, logsnr and arm.

    `ObjectiveConfig.prediction` says which quantity the prediction is.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.steps = nn.ModuleList()
        skips = config.skip_widths()
        width = config.widths[-1]
        for stage in reversed(range(len(config.widths))):
            for _ in range(config.down_blocks + 1):
                self.steps.append(stage_block(config, stage, width + skips.pop()))
                width = config.widths[stage]
            if stage > 0:
                self.steps.append(Upsample(width))
        self.out = nn.Sequential(
            nn.GroupNorm(config.groups, width),
            nn.SiLU(),
            zero_module(nn.Conv2d(width, config.folded_channels, 3, padding=1)),
        )
        self.head = (
            VoxelRefinementHead(
                config.voxel_head_width, embedding=config.embedding, base_map=config.base_map
            )
            if config.voxel_head_width
            else None
        )

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        residuals: ControlNetOutput | None = None,
        lesion_load: Tensor | None = None,
        net2_offset: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction [b, 2, s, h, w] for z of that shape, logsnr [b] and arm [b].

        `arm` holds rows of the arm table. `lesion_load` [b] is the class of lesion load that the
        sample shall have. `net2_offset` [b, s, h, w] is added to the log odds of NET2: the base map
        of each patient, for a model with `base_map`.
        """
        embedding = self.encoder.embedding(logsnr, arm, lesion_load)
        skips, features = self.encoder(z, embedding)
        if residuals is not None:
            pairs = zip(skips, residuals.skips, strict=True)
            skips = [skip + residual for skip, residual in pairs]
            features = features + residuals.middle
        for step in self.steps:
            if isinstance(step, ResAttnBlock):
                features = step(torch.cat([features, skips.pop()], dim=1), embedding)
            else:
                features = step(features)
        # The output stays in float32. Near -1, bfloat16 has steps of 1/128, which would round a
        # lesion probability of 1 in 1000 to 0.
        with torch.autocast(z.device.type, enabled=False):
            out = channels_to_slices(
                self.out(features.float()), slices=self.config.slices, patch=self.config.patch
            )
            flair, net2 = out.unbind(1)
            if residuals is not None and residuals.net2 is not None:
                net2 = net2 + residuals.net2
            if net2_offset is not None:
                net2 = net2 + net2_offset
            if self.head is not None:
                net2 = self.head(net2, z[:, NET2], logsnr, embedding.float(), net2_offset)
        return torch.stack([flair, net2], dim=1)
