"""Bring FLAIR to one scale of intensity and of space, and smooth it.

The reader works on voxels of about 3 mm, whatever the voxels of the store. Volumes are
[..., s, h, w], and spacings are (s, h, w) in mm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Spacing = tuple[float, float, float]

WORKING_MM = 3.0
NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median deviation
LOWEST, HIGHEST = -4.0, 6.0  # robust standard deviations at which intensities are clipped
REACH = 4.0  # a Gaussian kernel ends at this many standard deviations


@dataclass(frozen=True)
class WorkingGrid:
    """Voxels on which the reader works: blocks of the store's voxels."""

    #: Voxels of the store in a block, (s, h, w).
    block: tuple[int, int, int]
    #: Size of a block in mm.
    spacing: Spacing

    @classmethod
    def of(cls, spacing: Spacing) -> "WorkingGrid":
        """Return the grid whose blocks come nearest to 3 mm for voxels of `spacing` mm."""
        s, h, w = (max(1, round(WORKING_MM / size)) for size in spacing)
        return cls((s, h, w), (s * spacing[0], h * spacing[1], w * spacing[2]))

    def average(self, volumes: Tensor) -> Tensor:
        """Return the mean of every block of [b, c, s, h, w]; the last of an axis may be cut."""
        if self.block == (1, 1, 1):
            return volumes
        return functional.avg_pool3d(volumes, self.block, ceil_mode=True, count_include_pad=False)


def normalise(flair: Tensor) -> Tensor:
    """Return FLAIR [..., s, h, w] in robust standard deviations of the head, halved.

    Median and median absolute deviation are those of the voxels above the image's mean. Values are
    clipped to [-4, 6] standard deviations. An image that is zero everywhere, which is a missing
    one, stays zero.
    """
    values = flair.flatten(-3)
    mean = values.mean(-1, keepdim=True)
    # nanmedian leaves out what is NaN, so that images of one batch may have heads of any size.
    head = values.masked_fill(values <= mean, torch.nan)
    median = head.nanmedian(-1, keepdim=True).values
    deviation = (head - median).abs().nanmedian(-1, keepdim=True).values
    z = (values - median) / (NORMAL_MAD * deviation).clamp(min=1e-6)
    halved = z.clamp(LOWEST, HIGHEST) / 2
    return halved.nan_to_num(nan=0.0).view_as(flair)


def above_mean(flair: Tensor) -> Tensor:
    """Return 1.0 where FLAIR [..., s, h, w] exceeds the image's mean, which is the head, else 0."""
    return (flair > flair.mean((-3, -2, -1), keepdim=True)).to(flair)


def smooth(volume: Tensor, sigma: float, spacing: Spacing) -> Tensor:
    """Smooth a volume [..., s, h, w] with a Gaussian of `sigma` mm.

    Kernels are renormalised at the border of the volume.
    """
    for axis, size in zip((-3, -2, -1), spacing, strict=True):
        kernel = gaussian_matrix(volume.shape[axis], sigma / size, like=volume)
        volume = apply_along(kernel, volume, axis)
    return volume


def gaussian_matrix(length: int, sigma: float, *, like: Tensor) -> Tensor:
    """Return the matrix [length, length] that smooths an axis with a Gaussian of `sigma` voxels."""
    index = torch.arange(length, device=like.device, dtype=like.dtype)
    distance = (index[:, None] - index).abs() / sigma
    kernel = torch.exp(-(distance**2) / 2) * (distance <= REACH)
    return kernel / kernel.sum(1, keepdim=True)


def neighbour_matrix(length: int, *, like: Tensor) -> Tensor:
    """Return the matrix [length, length] of the mean of a voxel's neighbours along an axis.

    A voxel at the border has one neighbour. The only voxel of an axis is its own neighbour.
    """
    if length == 1:
        return like.new_ones(1, 1)
    index = torch.arange(length, device=like.device)
    beside = ((index[:, None] - index).abs() == 1).to(like.dtype)
    return beside / beside.sum(1, keepdim=True)


def touching_matrix(length: int, *, like: Tensor) -> Tensor:
    """Return the matrix [length, length] that adds up a voxel and its neighbours along an axis."""
    index = torch.arange(length, device=like.device)
    return ((index[:, None] - index).abs() <= 1).to(like)


def apply_along(matrix: Tensor, volume: Tensor, axis: int) -> Tensor:
    """Multiply `matrix` [n, n] with a volume [..., s, h, w] along one of its last three axes.

    Matrix products are faster on a CPU than convolutions with one channel.
    """
    if axis == -1:
        return volume @ matrix.T
    if axis == -2:
        return matrix @ volume
    flat = matrix @ volume.flatten(-2)
    return flat.view_as(volume)


def contrast_to_neighbours(volume: Tensor) -> Sequence[Tensor]:
    """Return a volume [..., s, h, w] minus the mean of its neighbours, along each of three axes."""
    return [
        volume - apply_along(neighbour_matrix(volume.shape[axis], like=volume), volume, axis)
        for axis in (-3, -2, -1)
    ]
