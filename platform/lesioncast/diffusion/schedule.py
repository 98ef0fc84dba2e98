"""The variance-preserving noise schedule in continuous time t in [0, 1] (1 is noise).

z_t = alpha_t x + sigma_t eps (paper, equation 1), alpha_t^2 = sigmoid(logsnr_t).
Interpolated shifted cosine: Hoogeboom et al. 2023 (simple diffusion), section 3.2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScheduleConfig:
    """Shifts of the cosine schedule's logsnr near the data (t = 0) and near the noise (t = 1).

    A shift is 2 ln(d / resolution); the paper's 256-voxel slab takes d = 32 and d = 128.
    """

    shift_data: float = 2 * math.log(32 / 256)
    shift_noise: float = 2 * math.log(128 / 256)
    logsnr_limit: float = 15.0


def logsnr_at(t: Tensor, schedule: ScheduleConfig) -> Tensor:
    """logsnr of the interpolated shifted cosine schedule at `t`, same shape as `t`."""
    bound = math.atan(math.exp(-schedule.logsnr_limit / 2))
    angle = bound + t * (math.pi / 2 - 2 * bound)
    cosine = -2 * torch.log(torch.tan(angle))
    return cosine + t * schedule.shift_noise + (1 - t) * schedule.shift_data


def t_from_logsnr(logsnr: Tensor, schedule: ScheduleConfig) -> Tensor:
    """The inverse of `logsnr_at`, by bisection: it falls, but has no closed inverse."""
    low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
    for _ in range(60):
        middle = (low + high) / 2
        noisier = logsnr_at(middle, schedule) < logsnr
        low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
    return low


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the variance-preserving process at `logsnr`."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """`values` [b] shaped to broadcast against `like` [b, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
