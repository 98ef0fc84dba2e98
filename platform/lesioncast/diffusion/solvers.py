"""Solvers of the reverse process as pure functions, with a different logsnr and step per sample.

All are one exponential-integrator step in lambda = logsnr / 2 (Lu et al. 2022, DPM-Solver++), of
reverse processes with more or less noise (Xue et al. 2023, SA-Solver, section 4; eta is its tau^2):
first order without noise is DDIM, with noise the ancestral sampler (Kingma et al. 2021, equation
7); second order extrapolates x_hat from the step before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lesioncast.diffusion.objective import Denoiser
from lesioncast.diffusion.precision import Precision
from lesioncast.diffusion.schedule import (
    ScheduleConfig,
    alpha_sigma,
    expand_to,
    logsnr_at,
    t_from_logsnr,
)

Solver = Literal["ancestral", "ddim", "dpmsolver++", "sde-dpmsolver++"]


@dataclass(frozen=True)
class SamplerConfig:
    """How samples are drawn.

    `grid` spaces the steps evenly in t or in logsnr, between `logsnr_min` and `logsnr_max` where
    these lie inside the schedule's range; a range that starts above pure noise is preceded by one
    step from there. `eta` is the noise of sde-dpmsolver++, from 0 (the ODE, dpmsolver++) to 1 (the
    reverse SDE). `variance` is that of the ancestral step, from 0 (the lower bound) to 1 (the
    upper) on a logarithmic scale (Nichol and Dhariwal 2021, equation 15). `guidance` is 0
    unconditional, 1 conditional, above 1 exaggerated: uncond + guidance * (cond - uncond); the
    literature's w is guidance - 1. It applies where logsnr lies in `guidance_interval`; elsewhere
    x_hat is conditional. In `precision` bfloat16 the networks run under autocast; z stays in
    float32.
    """

    solver: Solver = "ancestral"
    num_steps: int = 256
    spacing: Literal["t", "logsnr"] = "logsnr"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    eta: float = 1.0
    variance: float = 0.5
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (-20.0, 20.0)
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be 1 or more, got {self.num_steps}")
        for name in ("eta", "variance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")
        for name, (low, high) in (
            ("logsnr_min, logsnr_max", (self.logsnr_min, self.logsnr_max)),
            ("guidance_interval", self.guidance_interval),
        ):
            if low >= high:
                raise ValueError(f"{name} must rise, from noise to data, got {low} to {high}")


@dataclass(frozen=True)
class SolverCoefficients:
    """The linear map of each step, [num_steps] each; `logsnr` is where the network is evaluated.

    z_s = keep * z_t + pull * (x_hat + slope * (x_hat - x_hat_before)) + spread * noise
    """

    logsnr: Tensor
    keep: Tensor
    pull: Tensor
    slope: Tensor
    spread: Tensor


@dataclass(frozen=True)
class SolverState:
    """Samples on their way, each at a step of its own; one that has taken all its steps is x.

    `z` and `x_hat_before` [n, ...], `step` [n].
    """

    z: Tensor
    x_hat_before: Tensor
    step: Tensor


def logsnr_grid(schedule: ScheduleConfig, sampler: SamplerConfig) -> Tensor:
    """The logsnr of each network evaluation, rising from noise to data, float64 [num_steps]."""
    range_of_schedule = logsnr_at(torch.tensor([1.0, 0.0], dtype=torch.float64), schedule)
    ends = range_of_schedule.clamp(sampler.logsnr_min, sampler.logsnr_max)
    pure_noise = range_of_schedule[:1]
    before = pure_noise[pure_noise < ends[0]]
    count = sampler.num_steps - len(before)
    if sampler.spacing == "logsnr":
        return torch.cat([before, _even(ends, count)])
    return torch.cat([before, logsnr_at(_even(t_from_logsnr(ends, schedule), count), schedule)])


def _even(ends: Tensor, count: int) -> Tensor:
    return torch.lerp(ends[0], ends[1], torch.linspace(0, 1, count, dtype=ends.dtype))


def solver_coefficients(schedule: ScheduleConfig, sampler: SamplerConfig) -> SolverCoefficients:
    """Every step's map, in float64: a sample's arithmetic cannot depend on its batch mates.

    The last step goes to the data, where z is x_hat.
    """
    t = logsnr_grid(schedule, sampler)
    (alpha, sigma), h = alpha_sigma(t), t.diff() / 2
    second_order = sampler.solver in ("dpmsolver++", "sde-dpmsolver++")
    eta = {"ancestral": 1.0, "ddim": 0.0, "dpmsolver++": 0.0, "sde-dpmsolver++": sampler.eta}[
        sampler.solver
    ]
    shrink = sigma[1:] / sigma[:-1]
    spread = sigma[1:] * (-torch.expm1(-2 * eta * h)).sqrt()
    if sampler.solver == "ancestral":
        spread = spread * shrink**-sampler.variance
    slope = torch.zeros_like(t)
    if second_order:
        slope[1:-1] = h[1:] / (2 * h[:-1])
    zero, one = t.new_zeros(1), t.new_ones(1)
    return SolverCoefficients(
        logsnr=t,
        keep=torch.cat([shrink * torch.exp(-eta * h), zero]),
        pull=torch.cat([alpha[1:] * -torch.expm1(-(1 + eta) * h), one]),
        slope=slope,
        spread=torch.cat([spread, zero]),
    )


def initial_state(noise: Tensor) -> SolverState:
    """Samples at pure noise [n, ...]."""
    step = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
    return SolverState(noise, torch.zeros_like(noise), step)


def solver_step(
    denoise: Denoiser, state: SolverState, noise: Tensor, *, steps: SolverCoefficients
) -> SolverState:
    """Every sample one step further, wherever it is: one call of `denoise`.

    `noise` [n, ...] is standard normal, and unused where a step has no spread.
    """
    logsnr, keep, pull, slope, spread = (
        column.to(state.z)[state.step]
        for column in (steps.logsnr, steps.keep, steps.pull, steps.slope, steps.spread)
    )
    x_hat = denoise(state.z, logsnr)
    keep, pull, slope, spread = (
        expand_to(column, state.z) for column in (keep, pull, slope, spread)
    )
    towards = x_hat + slope * (x_hat - state.x_hat_before)
    return SolverState(keep * state.z + pull * towards + spread * noise, x_hat, state.step + 1)


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample, so that a seed names a sample whatever the batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def seeded_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """The next standard normal draw of every sample, [n, *shape]."""
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
