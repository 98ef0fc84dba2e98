"""Small MLP with weights shared by all voxels, which reads the condition at a voxel and around it.

Feature maps in which squares of voxels are channels learn slowly what each image says of its own
voxels. Without this MLP, a short training leaves that out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import zero_module


def binomial_blur(volume: Tensor) -> Tensor:
    """Blur [b, s, h, w] with the kernel (1, 2, 1) / 4 along each axis; borders are replicated."""
    blurred = functional.pad(volume.unsqueeze(1), (1,) * 6, mode="replicate").squeeze(1)
    for axis in (1, 2, 3):
        before, at, after = (blurred.narrow(axis, start, volume.shape[axis]) for start in (0, 1, 2))
        blurred = (before + after).mul_(0.25).add_(at, alpha=0.5)
    return blurred


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
