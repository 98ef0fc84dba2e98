"""Variance-preserving noise schedule in continuous time t in [0, 1] (1 is noise).

z_t = alpha_t x + sigma_t eps (paper, equation 1), alpha_t^2 = sigmoid(logsnr_t).
Interpolated shifted cosine: Hoogeboom et al. 2023 (simple diffusion), section 3.2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the noise schedule.

    A shift is 2 ln(d / resolution). The paper's 256-voxel slab takes d = 32 and d = 128.
    """

    #: Shift of the cosine schedule's logsnr near the data (t = 0).
    shift_data: float = 2 * math.log(32 / 256)
    #: Shift of the cosine schedule's logsnr near the noise (t = 1).
    shift_noise: float = 2 * math.log(128 / 256)
    #: Largest absolute logsnr before the shifts.
    logsnr_limit: float = 15.0


def logsnr_at(t: Tensor, schedule: ScheduleConfig) -> Tensor:
    """Return the logsnr of the interpolated shifted cosine schedule, in the shape of `t`."""
    bound = math.atan(math.exp(-schedule.logsnr_limit / 2))
    angle = bound + t * (math.pi / 2 - 2 * bound)
    cosine = -2 * torch.log(torch.tan(angle))
    return cosine + t * schedule.shift_noise + (1 - t) * schedule.shift_data


def t_from_logsnr(logsnr: Tensor, schedule: ScheduleConfig) -> Tensor:
    """Invert `logsnr_at`."""
    # logsnr falls with t but has no closed inverse. 60 bisections exhaust float64.
    low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
    for _ in range(60):
        middle = (low + high) / 2
        noisier = logsnr_at(middle, schedule) < logsnr
        low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
    return low


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) of the variance-preserving process at `logsnr`."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """Reshape `values` [b] so that they broadcast against `like` [b, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
