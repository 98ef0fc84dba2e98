"""Solvers: standard deviation against closed forms, steps against diffusers, and seeds."""

from collections.abc import Callable

import diffusers
import pytest
import torch

from lesioncast.config import load_config
from lesioncast.diffusion.schedule import t_from_logsnr
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig
from lesioncast.diffusion.solvers import (
    SolverCoefficients,
    SolverState,
    initial_state,
    logsnr_grid,
    solver_coefficients,
    solver_step,
)
from tests.support.known_denoisers import (
    CONFIGS,
    DEVIATIONS,
    gaussian_denoiser,
    lesion_denoiser,
    sample,
    share_error,
    spread_error,
)

PAPER = ScheduleConfig()
SHIPPED = ("demo", "small", "paper")


def independent_noise(rows: int) -> torch.Tensor:
    """Return standard normal noise [rows, 3, 5] for three samples: the start, then each step."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(rows)]
    return torch.stack(noise)


def run_solver(steps: SolverCoefficients, noise: torch.Tensor) -> torch.Tensor:
    """Return x of three samples of Gaussian data."""
    state = initial_state(noise[0])
    for row in noise[1:]:
        state = solver_step(gaussian_denoiser(0.3, 0.5), state, row, steps=steps)
    return state.z


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "ancestral", "sde-dpmsolver++"])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_every_solver_has_the_exact_deviation_given_enough_steps(
    solver: str, deviation: float
) -> None:
    sampler = SamplerConfig(solver=solver, num_steps=2000, spacing="logsnr")  # type: ignore[arg-type]
    assert spread_error(deviation, PAPER, sampler) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "ancestral", "sde-dpmsolver++"])
def test_every_solver_has_the_exact_mean(solver: str) -> None:
    samples = sample(
        gaussian_denoiser(0.3, 0.5),
        shape=(64,),
        seeds=range(400),
        schedule=PAPER,
        sampler=SamplerConfig(solver=solver, num_steps=50, spacing="logsnr"),  # type: ignore[arg-type]
    )
    assert samples.mean().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_every_shipped_sampler_has_the_exact_deviation_within_two_percent(
    name: str, deviation: float
) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert abs(spread_error(deviation, config.schedule, config.sampler)) < 0.02


@pytest.mark.parametrize(
    ("name", "share", "bounds"),
    [
        ("demo", 0.5, {1: 0.01, 8: 0.01, 40: 0.01}),
        # A lesion of 40 voxels is decided at noise levels below the demo's logsnr_min of -4.
        ("demo", 0.1, {1: 0.07, 8: 0.07, 40: 0.23}),
        ("demo", 0.01, {1: 0.20, 8: 0.20, 40: 0.25}),
        ("small", 0.5, {1: 0.01, 8: 0.01, 40: 0.01}),
        ("small", 0.1, {1: 0.05, 8: 0.05, 40: 0.05}),
        ("small", 0.01, {1: 0.15, 8: 0.15, 40: 0.15}),
        ("paper", 0.5, {1: 0.01, 8: 0.01, 40: 0.01}),
        ("paper", 0.1, {1: 0.02, 8: 0.02, 40: 0.02}),
    ],
)
@pytest.mark.parametrize("voxels", [1, 8, 40])
def test_rare_lesions_are_sampled_at_nearly_their_true_rate(
    name: str, share: float, bounds: dict[int, float], voxels: int
) -> None:
    bound = bounds[voxels]
    config = load_config(CONFIGS / f"{name}.yaml")
    batches = 4 if share < 0.1 else 1
    assert abs(share_error(share, voxels, config.schedule, config.sampler, batches=batches)) < bound


def test_exact_deviation_lies_between_the_ancestral_variances() -> None:
    lower, upper = (
        spread_error(0.5, PAPER, SamplerConfig(num_steps=256, spacing="logsnr", variance=variance))
        for variance in (0.0, 1.0)
    )
    assert lower < -0.02 < 0 < upper


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_ancestral_sampler_has_the_exact_deviation_between_its_bounds(deviation: float) -> None:
    assert abs(spread_error(deviation, PAPER, SamplerConfig(solver="ancestral"))) < 0.02


def test_eta_spans_the_ode_and_the_sde() -> None:
    ode = solver_coefficients(PAPER, SamplerConfig(solver="dpmsolver++", num_steps=8))
    still, noisy = (
        solver_coefficients(PAPER, SamplerConfig(solver="sde-dpmsolver++", num_steps=8, eta=eta))
        for eta in (0, 1)
    )
    assert torch.equal(still.z_coef, ode.z_coef)
    assert still.noise_std.eq(0).all()
    assert (noisy.noise_std[:-1] > 0).all()


def test_samples_at_different_steps_share_a_batch() -> None:
    sampler = SamplerConfig(solver="sde-dpmsolver++", num_steps=6, spacing="logsnr", eta=0.5)
    steps, denoise = solver_coefficients(PAPER, sampler), gaussian_denoiser(0.2, 0.5)
    noise = independent_noise(7)

    def alone(row: int) -> list[SolverState]:
        states = [initial_state(noise[0, row : row + 1])]
        for step in range(1, 7):
            following = noise[step, row : row + 1]
            states.append(solver_step(denoise, states[-1], following, steps=steps))
        return states

    at = (0, 3, 5)  # the step of each sample; the last one takes its last step
    trajectories = [alone(row) for row in range(3)]
    state = SolverState(
        z=torch.cat([states[step].z for states, step in zip(trajectories, at, strict=True)]),
        previous_x_hat=torch.cat(
            [states[step].previous_x_hat for states, step in zip(trajectories, at, strict=True)]
        ),
        step=torch.tensor(at),
    )
    following = torch.stack([noise[step + 1, row] for row, step in enumerate(at)])
    together = solver_step(denoise, state, following, steps=steps)
    for row, step in enumerate(at):
        assert torch.equal(together.z[row], trajectories[row][step + 1].z[0])
        assert torch.equal(
            together.previous_x_hat[row], trajectories[row][step + 1].previous_x_hat[0]
        )
    assert together.step.tolist() == [1, 4, 6]


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpmsolver++", "sde-dpmsolver++"])
def test_a_seed_names_a_sample_regardless_of_its_batch_mates(solver: str) -> None:
    def draw(seeds: list[int]) -> torch.Tensor:
        sampler = SamplerConfig(solver=solver, num_steps=5)  # type: ignore[arg-type]
        denoise = gaussian_denoiser(0.0, 1.0)
        return sample(denoise, shape=(4,), seeds=seeds, schedule=PAPER, sampler=sampler)

    assert torch.equal(draw([3, 7, 11])[1], draw([7])[0])
    assert not torch.equal(draw([3, 7])[0], draw([3, 7])[1])


@pytest.mark.parametrize("spacing", ["t", "logsnr"])
def test_steps_run_from_pure_noise_to_data_within_their_bounds(spacing: str) -> None:
    sampler = SamplerConfig(num_steps=9, spacing=spacing, logsnr_min=-8, logsnr_max=6)  # type: ignore[arg-type]
    levels = logsnr_grid(PAPER, sampler)
    assert (levels.diff() > 0).all()
    assert levels[[0, 1, -1]].tolist() == pytest.approx([-15 + PAPER.shift_noise, -8, 6])
    even = (levels if spacing == "logsnr" else t_from_logsnr(levels, PAPER))[1:].diff()
    assert torch.allclose(even, even.mean())
    assert len(logsnr_grid(PAPER, SamplerConfig(num_steps=1, logsnr_min=-8))) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of NumPy
@pytest.mark.parametrize(
    ("solver", "algorithm"),
    [("dpmsolver++", "dpmsolver++"), ("sde-dpmsolver++", "sde-dpmsolver++")],
)
@pytest.mark.parametrize(("spacing", "first"), [("logsnr", -20), ("logsnr", -4), ("t", -20)])
def test_second_order_steps_equal_those_of_diffusers(
    solver: str, algorithm: str, spacing: str, first: float
) -> None:
    """Steps are even, uneven at the first step, or uneven at every step."""
    sampler = SamplerConfig(solver=solver, num_steps=10, spacing=spacing, logsnr_min=first)  # type: ignore[arg-type]
    steps, noise = solver_coefficients(PAPER, sampler), independent_noise(11)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm,
        prediction_type="sample",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(0)
    scheduler.sigmas = torch.cat([(-steps.logsnr / 2).exp(), torch.zeros(1)])
    z = noise[0]
    for logsnr, t, row in zip(steps.logsnr, scheduler.timesteps, noise[1:], strict=True):
        x_hat = gaussian_denoiser(0.3, 0.5)(z, logsnr.expand(3))
        z = scheduler.step(x_hat, t, z, variance_noise=row).prev_sample
    assert torch.allclose(run_solver(steps, noise), z.double(), atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "variance"), [("ddim", 0.0), ("ancestral", 0.0), ("ancestral", 1.0)]
)
def test_first_order_steps_equal_those_of_diffusers(solver: str, variance: float) -> None:
    sampler = SamplerConfig(solver=solver, num_steps=10, spacing="logsnr", variance=variance)  # type: ignore[arg-type]
    steps, noise = solver_coefficients(PAPER, sampler), independent_noise(11)
    settings = {"num_train_timesteps": 10, "prediction_type": "sample", "clip_sample": False}
    if solver == "ddim":
        scheduler = diffusers.DDIMScheduler(**settings)
    else:
        kind = "fixed_large" if variance else "fixed_small"
        scheduler = diffusers.DDPMScheduler(**settings, variance_type=kind)
    scheduler.alphas_cumprod = torch.sigmoid(steps.logsnr).flip(0)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    for logsnr, t in zip(steps.logsnr, scheduler.timesteps, strict=True):
        x_hat = gaussian_denoiser(0.3, 0.5)(z, logsnr.expand(3))
        z = scheduler.step(x_hat, int(t), z, generator=generator).prev_sample
    assert torch.allclose(run_solver(steps, noise), z, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected 1 or more, got 0"),
        ({"eta": 1.5}, "eta: expected 0 to 1, got 1.5"),
        ({"variance": -1}, "variance: expected 0 to 1, got -1"),
        (
            {"guidance_interval": (3, -3)},
            "guidance_interval: expected a range that rises .* got 3 to -3",
        ),
        (
            {"logsnr_min": 7, "logsnr_max": 6},
            "logsnr_max: expected a range that rises .* got 7 to 6",
        ),
    ],
)
def test_invalid_sampler_settings_are_rejected(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**settings)  # type: ignore[arg-type]


def test_decided_sample_ends_early_with_the_same_mask() -> None:
    sampler = load_config(CONFIGS / "demo.yaml").sampler
    denoise, calls = lesion_denoiser(0.3, 1), 0

    def counted(z: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return denoise(z, logsnr)

    def draw(seed: int, is_decided: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
        return sample(
            counted,
            shape=(64,),
            seeds=[seed],
            schedule=ScheduleConfig(-2.0, -2.0),
            sampler=sampler,
            is_decided=is_decided,
        )

    for seed in range(20):
        early = draw(seed, lambda x_hat: (x_hat.abs() > 1 - 1e-6).all(1))
        assert torch.equal(early > 0, draw(seed, None) > 0)
    assert calls < 20 * 1.9 * sampler.num_steps
