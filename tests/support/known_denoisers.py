"""Denoisers in closed form, and the error of a sampler on their data.

Gaussian data: a solver is then linear in its noise. Unit vectors in place of the noise give its
coefficients, and the norm of the coefficients is the standard deviation, without any sampling.
Binary data: the voxels of a lesion are all 1 or all -1, so that only the mean of z over them
matters.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lesioncast.diffusion.continuous_batching import (
    ContinuousBatcher,
    ReverseProcess,
    run_until_idle,
)
from lesioncast.diffusion.objective import Denoiser
from lesioncast.diffusion.schedule import alpha_sigma, expand_to
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig
from lesioncast.diffusion.solvers import initial_state, solver_coefficients, solver_step

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
DEVIATIONS = (0.1, 0.3, 0.5, 1.0)


def gaussian_denoiser(mean: float, deviation: float) -> Denoiser:
    """Return the denoiser E[x | z_t] of x ~ N(mean, deviation^2)."""

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        alpha, sigma = (expand_to(value, z) for value in alpha_sigma(logsnr))
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (z - alpha * mean)

    return denoise


def lesion_denoiser(share: float, voxels: int) -> Denoiser:
    """Return E[x | z_t] of x = sqrt(voxels) with probability `share`, else -sqrt(voxels)."""
    prior, size = math.log(share / (1 - share)), math.sqrt(voxels)

    def denoise(z: Tensor, logsnr: Tensor) -> Tensor:
        alpha, sigma = (expand_to(value, z) for value in alpha_sigma(logsnr))
        return size * torch.tanh((prior + 2 * alpha * size * z / sigma**2) / 2)

    return denoise


def sample(
    denoise: Denoiser,
    *,
    shape: Sequence[int],
    seeds: Sequence[int],
    schedule: ScheduleConfig,
    sampler: SamplerConfig,
    is_decided: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sample one x of `shape` per seed from one denoiser for all: [n, *shape]."""
    process = ReverseProcess[None](
        lambda _: denoise, shape=shape, schedule=schedule, sampler=sampler, is_decided=is_decided
    )
    batcher = ContinuousBatcher(process, slots=len(seeds))
    return run_until_idle(batcher, [None] * len(seeds), seeds)


def spread_error(deviation: float, schedule: ScheduleConfig, sampler: SamplerConfig) -> float:
    """Return the sampled standard deviation of Gaussian data over the exact one, minus 1."""
    units = torch.eye(sampler.num_steps + 1, dtype=torch.float64)
    x = _run_solver(gaussian_denoiser(0.0, deviation), units, schedule, sampler)
    return float(x.norm() / deviation) - 1


def share_error(
    share: float, voxels: int, schedule: ScheduleConfig, sampler: SamplerConfig, *, batches: int
) -> float:
    """Return the sampled share of lesions over the exact one, minus 1.

    Each batch has 32768 Sobol points. The standard error is at most
    sqrt((1 - share) / share / 32768 / batches).
    """
    sobol = torch.quasirandom.SobolEngine(sampler.num_steps + 1, scramble=True, seed=0)
    denoise, shares = lesion_denoiser(share, voxels), []
    for _ in range(batches):
        uniform = sobol.draw(2**15, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        x = _run_solver(denoise, torch.special.ndtri(uniform).T.contiguous(), schedule, sampler)
        shares.append(float((x > 0).double().mean()))
    return sum(shares) / batches / share - 1


def _run_solver(
    denoise: Denoiser, noise: Tensor, schedule: ScheduleConfig, sampler: SamplerConfig
) -> Tensor:
    """Return x from noise [num_steps + 1, n]: the start, then one row per step."""
    steps = solver_coefficients(schedule, sampler)
    state = initial_state(noise[:1])
    for row in noise[1:]:
        state = solver_step(denoise, state, row[None], steps=steps)
    return state.z
