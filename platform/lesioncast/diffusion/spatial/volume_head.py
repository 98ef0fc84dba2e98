"""Small 3-D convolutional network that refines NET2's log odds at full resolution.

The UNet holds slices as channels, which share no weights, and on small machines it works on squares
of voxels. It would have to learn for each slice and each place in a square that lesions are
coherent blobs. Here all voxels share the weights.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import zero_module
from lesioncast.diffusion.objective import log_likelihood_ratio

DILATIONS = (1, 1, 2)  # of the hidden layers; with the last layer a voxel sees 11 x 11 x 11 voxels
EVIDENCE_LIMIT = 5.0  # of half the log likelihood ratio of a voxel
ODDS_SCALE = 4.0  # about the spread of base log odds over the brain


class ModulatedConv(nn.Module):
    """A 3 x 3 x 3 convolution with SiLU, scaled and shifted by an embedding (FiLM, Perez 2018).

    The modulation starts as none.
    """

    def __init__(self, width_in: int, width: int, *, embedding: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width_in, width, 3, padding=dilation, dilation=dilation)
        self.modulation = zero_module(nn.Linear(embedding, 2 * width))

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return [b, width, s, h, w] from features [b, width_in, s, h, w] and embedding [b, e]."""
        scale, shift = self.modulation(embedding)[:, :, None, None, None].chunk(2, dim=1)
        return functional.silu(torch.addcmul(shift, self.conv(features), 1 + scale))


class VolumeHead(nn.Module):
    """Refinement of NET2's log odds by what the voxels around say.

    It reads the evidence in z_t, the UNet's log odds and the offset of the base map. The output
    starts at the UNet's log odds.
    """

    def __init__(self, width: int, *, embedding: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ModulatedConv(width if layer else 3, width, embedding=embedding, dilation=dilation)
            for layer, dilation in enumerate(DILATIONS)
        )
        self.out = zero_module(nn.Conv3d(width, 1, 3, padding=1))

    def forward(
        self,
        net2: Tensor,
        z: Tensor,
        logsnr: Tensor,
        embedding: Tensor,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Return refined log odds [b, s, h, w].

        `net2` are the log odds of the UNet and `z` is z_t of NET2, both [b, s, h, w]. `offset`, of
        that shape, is what a base map has added to `net2`; None for a model without one.
        """
        evidence = (log_likelihood_ratio(z, logsnr) / 2).clamp(-EVIDENCE_LIMIT, EVIDENCE_LIMIT)
        offset = torch.zeros_like(net2) if offset is None else offset
        # On a CPU a layer of 8 channels takes 2.4 times as long with the channels first.
        features = torch.stack(
            [evidence / 2, offset / ODDS_SCALE, (net2 - offset) / ODDS_SCALE], dim=1
        ).contiguous(memory_format=torch.channels_last_3d)
        for index, layer in enumerate(self.layers):
            hidden = layer(features, embedding)
            features = features + hidden if index else hidden
        refined: Tensor = net2 + self.out(features)[:, 0]
        return refined
