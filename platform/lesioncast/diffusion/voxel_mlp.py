"""Small MLPs with weights shared by all voxels; they read a voxel and its 3D neighbourhood.

The UNet holds slices as channels, which share no weights. Each slice would have to learn by itself
that lesions are coherent blobs inside the brain. Without these MLPs, a small network samples the
right number of lesion voxels, but scatters them.
"""

import torch
from torch import Tensor, nn

from lesioncast.diffusion.blocks import zero_module
from lesioncast.diffusion.objective import log_likelihood_ratio
from lesioncast.diffusion.settings.process import BASE_LOG_ODDS
from lesioncast.diffusion.spatial.filters import binomial_blur, max_filter_3x3x3

EVIDENCE_LIMIT = 5.0
ODDS_LIMIT = 10.0
OFFSET_SCALE = 4.0  # about the spread of base log odds over the brain
CENTRE = 8.0  # one over the binomial's central weight; turns averages into sums of evidence


def evidence_features(z: Tensor, logsnr: Tensor) -> Tensor:
    """Return features of the evidence in NET2's z_t [b, s, h, w], [b, 5, s, h, w].

    The features of a voxel are half its log likelihood ratio (`objective`), the sum of the ratio
    over its near and over its wider neighbourhood, the maximum of the near sum over the voxels that
    touch it, and the sum over a still wider neighbourhood.
    """
    own = (log_likelihood_ratio(z, logsnr) / 2).clamp(-EVIDENCE_LIMIT, EVIDENCE_LIMIT)
    near = CENTRE * binomial_blur(own)
    wider = binomial_blur(near)
    widest = binomial_blur(binomial_blur(wider))
    return torch.stack([own, near, wider, max_filter_3x3x3(near), widest], dim=1)


def belief_features(net2: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
    """Return features of the lesion probability under log odds `net2` [b, s, h, w].

    The features [b, 6, s, h, w] of a voxel are P(lesion) with the voxel's own evidence, the sum of
    P(lesion) over its near and over its wider neighbourhood, its maximum over the voxels that touch
    it, and the mean of its log odds over the near neighbourhood, with the maximum of that mean over
    the voxels that touch it. Log odds tell voxels apart that are all unlikely.
    """
    odds = BASE_LOG_ODDS + net2 + log_likelihood_ratio(z, logsnr)
    own = torch.sigmoid(odds)
    near = CENTRE * binomial_blur(own)
    mean = binomial_blur(odds.clamp(-ODDS_LIMIT, ODDS_LIMIT) / EVIDENCE_LIMIT)
    return torch.stack(
        [
            own,
            near,
            binomial_blur(near),
            max_filter_3x3x3(own),
            mean,
            max_filter_3x3x3(mean),
        ],
        dim=1,
    )


def with_local_mean(condition: Tensor) -> Tensor:
    """Append the local mean of each channel to c_f.

    [b, channels, s, h, w] -> [b, 2 * channels, s, h, w].
    """
    # One patient at a time: the volumes of one fit a CPU's cache, which halves the time.
    near = torch.stack([binomial_blur(binomial_blur(patient)) for patient in condition])
    return torch.cat([condition, near], dim=1)


class VoxelMLP(nn.Module):
    """MLP with one hidden layer on a voxel's features and the sample's embedding.

    The output starts at zero.
    """

    def __init__(self, features: int, width: int, *, embedding: int) -> None:
        super().__init__()
        self.read = nn.Linear(features, width)
        self.embed = nn.Linear(embedding, width)
        self.write = zero_module(nn.Linear(width, 1))

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """Return [b, s, h, w] from features [b, f, s, h, w] and an embedding [b, e]."""
        # Batched matrix products over [b, features, voxels] with a ReLU take half as long on a CPU
        # as nn.Linear over features in the last axis with a SiLU.
        read = self.read.weight.expand(len(features), -1, -1)
        hidden = torch.baddbmm(self._shift(embedding), read, features.flatten(2))
        return self._write(hidden, features)

    def read_features(self, features: Tensor) -> Tensor:
        """Return the first layer's part that no embedding changes, [b, width, s, h, w]."""
        read = self.read.weight.expand(len(features), -1, -1)
        reading = torch.bmm(read, features.flatten(2))
        return reading.reshape(*reading.shape[:2], *features.shape[2:])

    def from_reading(self, reading: Tensor, embedding: Tensor) -> Tensor:
        """Return what `forward` does, given the result of `read_features`."""
        return self._write(reading.flatten(2) + self._shift(embedding), reading)

    def _shift(self, embedding: Tensor) -> Tensor:
        shift: Tensor = self.embed(embedding) + self.read.bias
        return shift.unsqueeze(2)

    def _write(self, hidden: Tensor, like: Tensor) -> Tensor:
        """Return the output [b, s, h, w] of hidden units before the ReLU, [b, width, voxels]."""
        write = self.write.weight.expand(len(hidden), -1, -1)
        output = torch.bmm(write, hidden.relu_()) + self.write.bias
        return output.reshape(len(hidden), *like.shape[2:])


class VoxelRefinementHead(nn.Module):
    """Refinement of NET2's log odds in two passes of mean-field inference.

    The weights are shared by all voxels. The first pass reads the evidence in the noisy voxels
    around, the second also the probabilities that the first pass gave them (Zheng et al. 2015,
    section 4, with learned messages). With one pass, samples lost half their lesion volume between
    logsnr 0 and 2 and ended as single voxels.

    With `base_map` both passes also read the offset of the base map (`base_map`).
    """

    def __init__(self, width: int, *, embedding: int, base_map: bool = False) -> None:
        super().__init__()
        self.first = VoxelMLP(6 + base_map, width, embedding=embedding)
        self.second = VoxelMLP(12 + base_map, width, embedding=embedding)

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
        that shape, is what the base map has added to `net2`.
        """
        evidence = evidence_features(z, logsnr)
        if offset is not None:
            evidence = torch.cat([(offset / OFFSET_SCALE).unsqueeze(1), evidence], dim=1)
        net2 = net2 + self.first(torch.cat([net2.unsqueeze(1), evidence], dim=1), embedding)
        beliefs = belief_features(net2, z, logsnr)
        features = torch.cat([net2.unsqueeze(1), evidence, beliefs], dim=1)
        refined: Tensor = net2 + self.second(features, embedding)
        return refined
