"""What is the same for every voxel: small perceptrons that read a voxel and its neighbourhood.

Folded slices share no weights, so each would have to learn on its own that lesions are coherent
blobs inside the brain; a small network then draws the right number of voxels, but scattered.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import zero_module
from lesioncast.diffusion.objective import BASE_LOG_ODDS, log_likelihood_ratio

EVIDENCE_LIMIT = 5.0
CENTRE = 8.0  # one over the binomial's weight of the centre: averages become sums of evidence


def binomial_blur(volume: Tensor) -> Tensor:
    """[b, s, h, w] averaged with its neighbours by the binomial (1, 2, 1) / 4 along each axis."""
    return _along_axes(
        volume, lambda before, at, after: (before + after).mul_(0.25).add_(at, alpha=0.5)
    )


def max_filter_3x3x3(volume: Tensor) -> Tensor:
    """[b, s, h, w], each voxel the greatest of the 27 that touch it or are it.

    Axis by axis: max_pool3d took ten times as long on a CPU.
    """
    return _along_axes(volume, lambda before, at, after: before.maximum(at).maximum(after))


def _along_axes(volume: Tensor, combine: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    padded = functional.pad(volume.unsqueeze(1), (1,) * 6, mode="replicate").squeeze(1)
    for axis in (1, 2, 3):
        size = volume.shape[axis]
        padded = combine(*(padded.narrow(axis, start, size) for start in (0, 1, 2)))
    return padded


def evidence_features(z: Tensor, logsnr: Tensor) -> Tensor:
    """What NET2's z_t [b, s, h, w] says of each voxel and its surroundings, [b, 4, s, h, w].

    Half the voxel's log likelihood ratio (`objective.log_odds`), that of its near and of its wider
    neighbourhood, and the greatest near one among the voxels that touch it.
    """
    own = (log_likelihood_ratio(z, logsnr) / 2).clamp(-EVIDENCE_LIMIT, EVIDENCE_LIMIT)
    near = CENTRE * binomial_blur(own)
    return torch.stack([own, near, binomial_blur(near), max_filter_3x3x3(near)], dim=1)


def belief_features(net2: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
    """What log odds `net2` [b, s, h, w] make of each voxel and its surroundings, [b, 4, s, h, w].

    P(lesion) with the voxel's own evidence, its sum over the near and over the wider neighbourhood,
    and the greatest among the voxels that touch it.
    """
    own = torch.sigmoid(BASE_LOG_ODDS + net2 + log_likelihood_ratio(z, logsnr))
    near = CENTRE * binomial_blur(own)
    return torch.stack(
        [own, near, binomial_blur(binomial_blur(near)), max_filter_3x3x3(own)], dim=1
    )


def with_local_mean(condition: Tensor) -> Tensor:
    """Each voxel's condition and the average of its surroundings.

    c_f [b, channels, s, h, w] -> [b, 2 * channels, s, h, w]. Patient by patient, whose volumes fit
    a CPU's cache: half the time of all at once.
    """
    near = torch.stack([binomial_blur(binomial_blur(patient)) for patient in condition])
    return torch.cat([condition, near], dim=1)


class VoxelMLP(nn.Module):
    """One hidden layer on the features of each voxel and the sample's embedding; starts at zero.

    Batched matrix products over [b, features, voxels] and a rectifier: half the time on a CPU of
    the features last and a SiLU.
    """

    def __init__(self, features: int, width: int, *, embedding: int) -> None:
        super().__init__()
        self.read = nn.Linear(features, width)
        self.embed = nn.Linear(embedding, width)
        self.write = zero_module(nn.Linear(width, 1))

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """[b, s, h, w] from features [b, f, s, h, w] and the embedding [b, e]."""
        batch, _, *size = features.shape
        read, write = (layer.weight.expand(batch, -1, -1) for layer in (self.read, self.write))
        shift = (self.embed(embedding) + self.read.bias).unsqueeze(2)
        hidden = torch.baddbmm(shift, read, features.flatten(2)).relu_()
        return (torch.bmm(write, hidden) + self.write.bias).reshape(batch, *size)


class VoxelRefinementHead(nn.Module):
    """Refines NET2's log odds in two passes, the same at every voxel: a mean-field inference.

    The first reads what the noisy voxels around say, the second what the first made of them: a
    voxel is a lesion because its neighbours are (Zheng et al. 2015, section 4, with learned
    messages). With one pass, samples lost half their lesion volume between logsnr 0 and 2 and came
    out as single voxels.
    """

    def __init__(self, width: int, *, embedding: int) -> None:
        super().__init__()
        self.first = VoxelMLP(5, width, embedding=embedding)
        self.second = VoxelMLP(9, width, embedding=embedding)

    def forward(self, net2: Tensor, z: Tensor, logsnr: Tensor, embedding: Tensor) -> Tensor:
        """Log odds [b, s, h, w] from those of the UNet, NET2's z_t of that shape, logsnr [b]."""
        near = evidence_features(z, logsnr)
        net2 = net2 + self.first(torch.cat([net2.unsqueeze(1), near], dim=1), embedding)
        believed = belief_features(net2, z, logsnr)
        seen = torch.cat([net2.unsqueeze(1), near, believed], dim=1)
        refined: Tensor = net2 + self.second(seen, embedding)
        return refined
