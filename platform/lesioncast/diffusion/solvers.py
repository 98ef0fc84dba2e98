"""Solvers of the reverse process as pure functions. Each sample of a batch has its own step.

All solvers are one exponential-integrator step in lambda = logsnr / 2 (Lu et al. 2022,
DPM-Solver++). The reverse processes differ in their noise (Xue et al. 2023, SA-Solver, section 4;
`eta` is tau^2 there). First order without noise is DDIM. First order with noise is the ancestral
sampler (Kingma et al. 2021, equation 7). Second order extrapolates x_hat from the previous step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lesioncast.diffusion.objective import Denoiser
from lesioncast.diffusion.schedule import alpha_sigma, expand_to, logsnr_at, t_from_logsnr
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig


@dataclass(frozen=True)
class SolverCoefficients:
    """Coefficients of the linear map of each step, [num_steps] each.

    x0 = x_hat + extrapolation * (x_hat - previous_x_hat)
    z_s = z_coef * z_t + x0_coef * x0 + noise_std * noise

    The networks are evaluated at `logsnr`.
    """

    logsnr: Tensor
    z_coef: Tensor
    x0_coef: Tensor
    extrapolation: Tensor
    noise_std: Tensor


@dataclass(frozen=True)
class SolverState:
    """State of n samples, each at its own `step` [n]: z and the previous x_hat, [n, ...] each.

    After the last step, z is the sample x.
    """

    z: Tensor
    previous_x_hat: Tensor
    step: Tensor


def logsnr_grid(schedule: ScheduleConfig, sampler: SamplerConfig) -> Tensor:
    """Return the logsnr of each network evaluation, from noise to data, float64 [num_steps]."""
    schedule_range = logsnr_at(torch.tensor([1.0, 0.0], dtype=torch.float64), schedule)
    ends = schedule_range.clamp(sampler.logsnr_min, sampler.logsnr_max)
    pure_noise = schedule_range[:1]
    before = pure_noise[pure_noise < ends[0]]  # one step from pure noise, or none
    count = sampler.num_steps - len(before)
    if sampler.spacing == "logsnr":
        return torch.cat([before, _even(ends, count)])
    return torch.cat([before, logsnr_at(_even(t_from_logsnr(ends, schedule), count), schedule)])


def _even(ends: Tensor, count: int) -> Tensor:
    """Return `count` evenly spaced values between two ends."""
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, count, dtype=ends.dtype))


def solver_coefficients(schedule: ScheduleConfig, sampler: SamplerConfig) -> SolverCoefficients:
    """Return the coefficients of every step, in float64.

    The last step goes to the data, where z is x_hat. The coefficients depend on the step alone, so
    that a sample does not depend on the samples in its batch.
    """
    logsnr = logsnr_grid(schedule, sampler)
    (alpha, sigma), h = alpha_sigma(logsnr), logsnr.diff() / 2
    second_order = sampler.solver in ("dpmsolver++", "sde-dpmsolver++")
    eta = {"ancestral": 1.0, "ddim": 0.0, "dpmsolver++": 0.0, "sde-dpmsolver++": sampler.eta}[
        sampler.solver
    ]
    shrink = sigma[1:] / sigma[:-1]
    noise_std = sigma[1:] * (-torch.expm1(-2 * eta * h)).sqrt()
    if sampler.solver == "ancestral":
        noise_std = noise_std * shrink**-sampler.variance
    extrapolation = torch.zeros_like(logsnr)
    if second_order:
        # The first step has no previous x_hat. The last step goes to x_hat itself.
        extrapolation[1:-1] = h[1:] / (2 * h[:-1])
    zero, one = logsnr.new_zeros(1), logsnr.new_ones(1)
    return SolverCoefficients(
        logsnr=logsnr,
        z_coef=torch.cat([shrink * torch.exp(-eta * h), zero]),
        x0_coef=torch.cat([alpha[1:] * -torch.expm1(-(1 + eta) * h), one]),
        extrapolation=extrapolation,
        noise_std=torch.cat([noise_std, zero]),
    )


def initial_state(noise: Tensor) -> SolverState:
    """Return the state of samples at pure noise [n, ...], before their first step."""
    step = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
    return SolverState(noise, torch.zeros_like(noise), step)


def solver_step(
    denoise: Denoiser, state: SolverState, noise: Tensor, *, steps: SolverCoefficients
) -> SolverState:
    """Advance every sample by one step with one call of `denoise`.

    `noise` [n, ...] is standard normal. A step with noise_std 0 does not use it.
    """

    def at_step(coefficients: Tensor) -> Tensor:
        return coefficients.to(state.z)[state.step]  # [n]

    x_hat = denoise(state.z, at_step(steps.logsnr))
    z_coef, x0_coef, extrapolation, noise_std = (
        expand_to(at_step(coefficients), state.z)
        for coefficients in (steps.z_coef, steps.x0_coef, steps.extrapolation, steps.noise_std)
    )
    x0 = x_hat + extrapolation * (x_hat - state.previous_x_hat)
    return SolverState(z_coef * state.z + x0_coef * x0 + noise_std * noise, x_hat, state.step + 1)


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per seed, so that a seed names a sample whatever its batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def seeded_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Draw the next standard normal noise of every sample, [n, *shape]."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
