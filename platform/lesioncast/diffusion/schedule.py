"""Variance-preserving noise schedule in continuous time t in [0, 1] (1 is noise).

z_t = alpha_t x + sigma_t eps (paper, equation 1), alpha_t^2 = sigmoid(logsnr_t).
Interpolated shifted cosine: Hoogeboom et al. 2023 (simple diffusion), section 3.2.
"""

import math

import torch
from torch import Tensor

from lesioncast.diffusion.settings.process import ScheduleConfig


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
