"""Solvers of the reverse process as pure functions, with a different logsnr per sample.

All four are one exponential-integrator step in lambda = logsnr / 2 (Lu et al. 2022, DPM-Solver++):
first order without noise is DDIM, with noise the ancestral sampler (Kingma et al. 2021, equation 7,
lower variance); second order extrapolates x_hat from the step before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lesioncast.diffusion.objective import Denoiser
from lesioncast.diffusion.precision import Precision
from lesioncast.diffusion.schedule import ScheduleConfig, alpha_sigma, logsnr_at, per_sample

Solver = Literal["ancestral", "ddim", "dpm2m", "sde2m"]


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn.

    `grid` spaces the steps evenly in t or in logsnr, between `logsnr_min` and `logsnr_max` where
    these lie inside the schedule's range. `guidance` is 0 unconditional, 1 conditional, above 1
    exaggerated: uncond + guidance * (cond - uncond); the literature's w is guidance - 1. In
    `precision` bfloat16 the networks run under autocast; z stays in float32.
    """

    solver: Solver = "ancestral"
    num_steps: int = 256
    grid: Literal["t", "logsnr"] = "t"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    guidance: float = 1.0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be 1 or more, got {self.num_steps}")


def logsnr_grid(schedule: ScheduleConfig, sampler: SamplerConfig) -> Tensor:
    """The logsnr of each network evaluation, rising from noise to data, [num_steps]."""
    ends = logsnr_at(torch.tensor([1.0, 0.0], dtype=torch.float64), schedule)
    low, high = max(float(ends[0]), sampler.logsnr_min), min(float(ends[1]), sampler.logsnr_max)
    if sampler.grid == "logsnr":
        return torch.linspace(low, high, sampler.num_steps)
    t = torch.linspace(1, 0, sampler.num_steps, dtype=torch.float64)
    return logsnr_at(t, schedule).clamp(low, high).float()


def advance(
    z_t: Tensor,
    x_hat: Tensor,
    *,
    logsnr_t: Tensor,
    logsnr_s: Tensor,
    x_hat_before: Tensor | None = None,
    logsnr_before: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """z_s from z_t [b, ...] and x_hat at logsnr_t [b], for the less noisy logsnr_s [b].

    With `noise` the step is stochastic; with `x_hat_before` at `logsnr_before` it is second order.
    """
    _, sigma_t = (per_sample(value, z_t) for value in alpha_sigma(logsnr_t))
    alpha_s, sigma_s = (per_sample(value, z_t) for value in alpha_sigma(logsnr_s))
    h = per_sample((logsnr_s - logsnr_t) / 2, z_t)
    slope = x_hat
    if x_hat_before is not None and logsnr_before is not None:
        h_before = per_sample((logsnr_t - logsnr_before) / 2, z_t)
        slope = x_hat + h / (2 * h_before) * (x_hat - x_hat_before)
    if noise is None:
        return sigma_s / sigma_t * z_t - alpha_s * torch.expm1(-h) * slope
    kept = sigma_s / sigma_t * torch.exp(-h) * z_t
    spread = -torch.expm1(-2 * h)
    return kept + alpha_s * spread * slope + sigma_s * spread.sqrt() * noise


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample, so that a seed names a sample whatever the batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def seeded_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """The next standard normal draw of every sample, [n, *shape]."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


@torch.no_grad()
def sample(
    denoise: Denoiser,
    *,
    shape: Sequence[int],
    seeds: Sequence[int],
    schedule: ScheduleConfig,
    sampler: SamplerConfig,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws one x of `shape` per seed: [n, *shape] in [-1, 1]."""
    generators = seeded_generators(seeds)
    stochastic = sampler.solver in ("ancestral", "sde2m")
    second_order = sampler.solver in ("dpm2m", "sde2m")
    z = seeded_noise(generators, shape).to(device)
    levels = logsnr_grid(schedule, sampler).to(device)
    x_hat_before: Tensor | None = None
    for step, level in enumerate(levels):
        x_hat = denoise(z, level.expand(len(seeds)))
        if step == len(levels) - 1:
            return x_hat
        z = advance(
            z,
            x_hat,
            logsnr_t=level.expand(len(seeds)),
            logsnr_s=levels[step + 1].expand(len(seeds)),
            x_hat_before=x_hat_before if second_order else None,
            logsnr_before=levels[step - 1].expand(len(seeds)) if step > 0 else None,
            noise=seeded_noise(generators, shape).to(device) if stochastic else None,
        )
        x_hat_before = x_hat
    raise AssertionError("num_steps is 1 or more")
