"""Find the voxels of FLAIR that may be lesions, and describe each of them by a few numbers.

The brightest voxels hold nearly all lesions. Change between the sessions is looked for where
brightness rose the most.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lesioncast.priors.flair_reader.volumes import (
    Spacing,
    WorkingGrid,
    above_mean,
    apply_along,
    contrast_to_neighbours,
    normalise,
    smooth,
    touching_matrix,
)

CANDIDATE_SHARE = 1 / 105  # of the voxels of a volume; 512 of 15 x 64 x 56
FINE_MM, MEDIUM_MM, WIDE_MM, COARSE_MM = 2.1, 3.0, 5.2, 6.0  # widths of Gaussians
DARK = -1.0  # normalised intensity of fluid and background
POSITION_MM = 50.0
STATIC_FEATURES, CHANGE_FEATURES = 17, 10
OTHER_SESSION = slice(15, 17)  # static features that come from the other session


@dataclass(frozen=True)
class Candidates:
    """Candidate voxels of b patients with two sessions each, k voxels a session.

    What belongs to a missing session has no meaning.
    """

    #: Whether the FLAIR of each session exists, bool [b, session].
    present: Tensor
    #: Features of the brightest voxels of each session, [b, session, k, 17].
    static: Tensor
    #: Features of the voxels that brightened the most, [b, k, 10].
    change: Tensor
    #: Index of each brightest voxel in the flat working grid, [b, session, k].
    static_index: Tensor
    #: Index of each voxel that brightened, [b, k].
    change_index: Tensor
    #: Voxels of the working grid along s, h and w, [b, 3].
    shape: Tensor


def candidate_count(voxels: int) -> int:
    """Return how many of a volume's voxels are candidates."""
    return min(voxels, max(1, round(voxels * CANDIDATE_SHARE)))


def find_candidates(flair: Tensor, spacing: Spacing) -> Candidates:
    """Return the candidates of FLAIR [b, session, s, h, w] of both sessions.

    FLAIR lies in [-1, 1] with voxels of `spacing` mm. A missing session is zero everywhere.
    """
    grid = WorkingGrid.of(spacing)
    present = flair.flatten(2).any(2)
    images = grid.average(flair.float())
    z = normalise(images)
    blurred = {sigma: smooth(z, sigma, grid.spacing) for sigma in (FINE_MM, MEDIUM_MM, COARSE_MM)}
    head = smooth(above_mean(images), COARSE_MM, grid.spacing)
    dark = smooth((z < DARK).to(z), MEDIUM_MM, grid.spacing)
    count = candidate_count(z[0, 0].numel())
    brightest = z.flatten(2).topk(count, dim=2).indices
    static = (
        z,
        *(z - each for each in blurred.values()),
        head,
        dark,
        *contrast_to_neighbours(z),
        *contrast_to_neighbours(blurred[FINE_MM]),
    )
    of_other = z.flip(1), blurred[MEDIUM_MM].flip(1)
    rise = z[:, 1] - z[:, 0]
    brightened = rise.flatten(1).topk(count, dim=1).indices
    change = (
        rise,
        *(smooth(rise, sigma, grid.spacing) for sigma in (FINE_MM, MEDIUM_MM)),
        rise - smooth(rise, WIDE_MM, grid.spacing),
        *z.unbind(1),
        *(z - blurred[COARSE_MM]).unbind(1),
        head[:, 1],
        dark[:, 1],
    )
    positions = _positions(z.shape[2:], grid.spacing, like=z)[brightest]
    return Candidates(
        present,
        torch.cat([_at(static, brightest), positions, _at(of_other, brightest)], dim=-1),
        _at(change, brightened),
        brightest,
        brightened,
        torch.tensor(z.shape[2:], device=z.device).expand(len(z), 3),
    )


def count_pieces(chosen: Tensor, index: Tensor, shape: Tensor) -> Tensor:
    """Return in how many pieces the `chosen` [b, k] of the voxels `index` [b, k] lie, [b].

    `shape` [b, 3] is that of the grid, the same in each row. A voxel counts as one over the chosen
    voxels among itself and its 26 neighbours. So a piece of at most two voxels along each axis
    counts 1, and one of three voxels along each axis 2.4.
    """
    s, h, w = shape[0].tolist()
    volume = chosen.new_zeros(len(chosen), s * h * w).scatter_(1, index, chosen).view(-1, s, h, w)
    for axis, length in zip((-3, -2, -1), (s, h, w), strict=True):
        volume = apply_along(touching_matrix(length, like=volume), volume, axis)
    return (chosen / volume.flatten(1).gather(1, index).clamp(min=1)).sum(1)


def masks_at(masks: Tensor, index: Tensor, spacing: Spacing) -> Tensor:
    """Return masks [b, c, s, h, w] at the candidates `index` [b, k], [b, k, c].

    Masks are -1 / +1, or 0 everywhere if missing, and so is the result.
    """
    blocks = WorkingGrid.of(spacing).average(masks.float()).flatten(2)
    values = blocks.gather(2, index[:, None].expand(-1, blocks.shape[1], -1))
    # A block of which half is lesion is no lesion. A missing mask stays 0.
    known = blocks.any(2)[:, :, None]
    signs = torch.where(values > 0, 1.0, -1.0) * known
    return signs.transpose(1, 2)


def _at(volumes: Iterable[Tensor], index: Tensor) -> Tensor:
    """Return each of `volumes` [..., s, h, w] at the voxels `index` [..., k], [..., k, volume]."""
    return torch.stack([volume.flatten(-3).gather(-1, index) for volume in volumes], dim=-1)


def _positions(shape: torch.Size, spacing: Spacing, *, like: Tensor) -> Tensor:
    """Return s, h and |w| of every voxel from the centre, in 50 mm, [s * h * w, 3]."""
    axes = [
        (torch.arange(length, device=like.device) - (length - 1) / 2) * size / POSITION_MM
        for length, size in zip(shape, spacing, strict=True)
    ]
    s, h, w = torch.meshgrid(*axes, indexing="ij")
    # Left and right are alike.
    return torch.stack([s, h, w.abs()], dim=-1).flatten(0, 2).to(like)
