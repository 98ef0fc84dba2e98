"""Noise schedule and objective against closed forms."""

import math

import pytest
import torch

from lesioncast.diffusion.objective import (
    diffusion_loss,
    predict_x0,
    snr_weight,
    undo_lesion_weight,
    voxel_error,
    voxel_weight,
)
from lesioncast.diffusion.schedule import alpha_sigma, logsnr_at, t_from_logsnr
from lesioncast.diffusion.settings.process import ObjectiveConfig, ScheduleConfig

PAPER = ScheduleConfig()


def test_schedule_is_the_interpolated_shifted_cosine() -> None:
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    cosine = -2 * torch.log(torch.tan(math.pi * t / 2))
    expected = cosine + t * 2 * math.log(1 / 2) + (1 - t) * 2 * math.log(1 / 8)
    assert torch.allclose(logsnr_at(t, PAPER), expected, atol=3e-3)


def test_schedule_falls_between_its_limits() -> None:
    levels = logsnr_at(torch.linspace(0, 1, 101, dtype=torch.float64), PAPER)
    assert (levels.diff() < 0).all()
    assert levels[0].item() == pytest.approx(15 + PAPER.shift_data, abs=1e-6)
    assert levels[-1].item() == pytest.approx(-15 + PAPER.shift_noise, abs=1e-6)


def test_t_from_logsnr_inverts_the_schedule() -> None:
    levels = torch.linspace(-16, 10, 27, dtype=torch.float64)
    assert torch.allclose(logsnr_at(t_from_logsnr(levels, PAPER), PAPER), levels, atol=1e-9)


def test_process_preserves_variance() -> None:
    alpha, sigma = alpha_sigma(torch.linspace(-10, 10, 21))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(21))


@pytest.mark.parametrize("kind", ["v", "eps", "x"])
def test_perfect_prediction_recovers_x_with_zero_loss(kind: str) -> None:
    x, noise = torch.randn(3, 2, 1, 4, 4), torch.randn(3, 2, 1, 4, 4)
    logsnr = torch.tensor([-3.0, 0.0, 3.0])
    alpha, sigma = (value[:, None, None, None, None] for value in alpha_sigma(logsnr))
    perfect = {"v": alpha * noise - sigma * x, "eps": noise, "x": x}[kind]
    z = alpha * x + sigma * noise
    objective = ObjectiveConfig(prediction=kind)  # type: ignore[arg-type]
    assert torch.allclose(predict_x0(perfect, z, logsnr, objective), x, atol=1e-4)
    assert voxel_error(perfect, x, noise, logsnr, objective).max() < 1e-9


@pytest.mark.parametrize("kind", ["v", "eps", "x"])
def test_squared_error_is_that_of_x_hat_for_every_prediction(kind: str) -> None:
    x, noise, guess = (torch.randn(3, 2, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    logsnr = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)
    alpha, sigma = (value[:, None, None, None, None] for value in alpha_sigma(logsnr))
    objective = ObjectiveConfig(prediction=kind)  # type: ignore[arg-type]
    x_hat = predict_x0(guess, alpha * x + sigma * noise, logsnr, objective)
    error = voxel_error(guess, x, noise, logsnr, objective)
    assert torch.allclose(error, (x - x_hat) ** 2)


def test_log_odds_follow_bayes_rule_for_a_binary_voxel() -> None:
    prior, logsnr = 0.02, torch.tensor([-1.0], dtype=torch.float64)
    objective = ObjectiveConfig(prediction="log_odds", base_log_odds=math.log(prior / (1 - prior)))
    alpha, sigma = (value.item() for value in alpha_sigma(logsnr))
    z = torch.linspace(-3, 3, 7, dtype=torch.float64).expand(1, 2, 1, 1, 7)
    lesion, none = (torch.exp(-((z - side * alpha) ** 2) / (2 * sigma**2)) for side in (1, -1))
    posterior = prior * lesion / (prior * lesion + (1 - prior) * none)
    x_hat = predict_x0(torch.zeros_like(z), z, logsnr, objective)
    assert torch.allclose(x_hat[:, 1], 2 * posterior[:, 1] - 1)
    assert torch.equal(x_hat[:, 0], torch.zeros_like(z[:, 0]))


def test_cross_entropy_and_squared_error_have_the_same_minimiser() -> None:
    x = torch.full((1, 2, 1, 1, 1000), -1.0, dtype=torch.float64)
    x[..., :30] = 1.0  # 3 % lesions at pure noise: the best log odds are log(0.03 / 0.97)
    logsnr, noise = torch.tensor([-40.0], dtype=torch.float64), torch.zeros_like(x)
    guesses = torch.linspace(-2, 2, 401, dtype=torch.float64)
    for loss in ("squared", "cross_entropy"):
        objective = ObjectiveConfig(prediction="log_odds", mask_loss=loss, base_log_odds=-3.0)  # type: ignore[arg-type]
        losses = [
            voxel_error(torch.full_like(x, guess.item()), x, noise, logsnr, objective)[:, 1].mean()
            for guess in guesses
        ]
        best = guesses[torch.stack(losses).argmin()].item() - 3.0
        assert best == pytest.approx(math.log(0.03 / 0.97), abs=0.01)


def test_cross_entropy_without_log_odds_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected prediction log_odds for cross_entropy, got v"):
        ObjectiveConfig(mask_loss="cross_entropy")


def test_min_snr_weight_is_at_most_gamma() -> None:
    logsnr = torch.tensor([-2.0, 0.0, math.log(5.0), 4.0])
    weight = snr_weight(logsnr, ObjectiveConfig(weighting="min_snr", min_snr_gamma=5.0))
    assert weight.tolist() == pytest.approx([math.exp(-2), 1.0, 5.0, 5.0])


def test_lesion_weight_applies_to_net2_only() -> None:
    x = torch.full((1, 2, 1, 2, 2), -1.0)
    x[0, :, 0, 0, 0] = 1.0
    weight = voxel_weight(x, ObjectiveConfig(lesion_weight=10.0, flair_weight=0.5))
    assert weight[0, 0].eq(0.5).all()
    assert weight[0, 1].flatten().tolist() == [10.0, 1.0, 1.0, 1.0]


def test_bias_of_the_lesion_weight_is_removed_exactly() -> None:
    p = torch.linspace(0, 1, 11)
    q = 10 * p / (10 * p + 1 - p)
    assert torch.allclose(undo_lesion_weight(2 * q - 1, 10.0), 2 * p - 1, atol=1e-6)


def test_loss_of_a_zero_prediction_is_the_weighted_power_of_the_target() -> None:
    x, noise = torch.full((2, 2, 1, 2, 2), -1.0), torch.zeros(2, 2, 1, 2, 2)
    loss = diffusion_loss(
        lambda z, _: torch.zeros_like(z),
        x,
        t=torch.tensor([0.3, 0.6]),
        noise=noise,
        schedule=PAPER,
        objective=ObjectiveConfig(prediction="x", weighting="x"),
    )
    assert loss.item() == pytest.approx(1.0)
