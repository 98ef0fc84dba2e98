"""Convert predictions to x_hat and compute the weighted loss (equations 2 and 3)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lesioncast.diffusion.schedule import alpha_sigma, expand_to, logsnr_at
from lesioncast.diffusion.settings.process import ObjectiveConfig, ScheduleConfig
from lesioncast.seeds import WORD, mixed_bits

Network = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]

FLAIR, NET2 = 0, 1  # channels of x


def log_likelihood_ratio(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
    """Return the log likelihood ratio of a lesion given a voxel's own z_t, in its shape [b, ...].

    For x in {-1, 1}: log N(z; alpha, sigma^2) - log N(z; -alpha, sigma^2) = 2 alpha z / sigma^2.
    """
    alpha, sigma = alpha_sigma(logsnr_t)
    return expand_to(2 * alpha / sigma**2, z_t) * z_t


def log_odds(odds: Tensor, z_t: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the log odds of a lesion given z_t: the prior, the network's, and the evidence."""
    return objective.base_log_odds + odds + log_likelihood_ratio(z_t, logsnr_t)


def predict_x0(
    prediction: Tensor, z_t: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """Return x_hat [b, 2, s, h, w] of a prediction (Salimans and Ho 2022, appendix D)."""
    alpha, sigma = (expand_to(value, z_t) for value in alpha_sigma(logsnr_t))
    if objective.prediction == "v":
        return alpha * z_t - sigma * prediction
    if objective.prediction == "eps":
        return (z_t - sigma * prediction) / alpha
    if objective.prediction == "x":
        return prediction
    mask = log_odds(prediction[:, NET2], z_t[:, NET2], logsnr_t, objective)
    return torch.stack([prediction[:, FLAIR], torch.tanh(mask / 2)], dim=1)


def snr_weight(logsnr_t: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the weight w(lambda) of the squared error of x, [b]."""
    if objective.weighting == "min_snr":
        return logsnr_t.exp().clamp(max=objective.min_snr_gamma)
    if objective.weighting == "v":
        return logsnr_t.exp() + 1
    return torch.ones_like(logsnr_t)


def voxel_weight(x: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the weight of each voxel's error, in the shape of x [b, 2, s, h, w].

    `lesion_weight` applies to lesion voxels in the NET2 channel only.
    """
    weight = torch.full_like(x, objective.flair_weight)
    weight[:, NET2] = torch.where(x[:, NET2] > 0, objective.lesion_weight, 1.0)
    return weight


def add_noise(x: Tensor, noise: Tensor, logsnr_t: Tensor) -> Tensor:
    """Return z_t of x and noise [b, 2, s, h, w] at logsnr [b] (equation 1)."""
    alpha, sigma = (expand_to(value, x) for value in alpha_sigma(logsnr_t))
    return alpha * x + sigma * noise


def voxel_error(
    prediction: Tensor, x: Tensor, noise: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """Return (x - x_hat)^2, or cross entropy on NET2, in the shape of x [b, 2, s, h, w]."""
    alpha, sigma = (expand_to(value, x) for value in alpha_sigma(logsnr_t))
    # Written in the predicted quantity. Through x_hat, a division by alpha would lose precision.
    if objective.prediction == "v":
        return sigma**2 * (prediction - (alpha * noise - sigma * x)) ** 2
    if objective.prediction == "eps":
        return (sigma / alpha) ** 2 * (prediction - noise) ** 2
    z_t = add_noise(x, noise, logsnr_t)
    error = (predict_x0(prediction, z_t, logsnr_t, objective) - x) ** 2
    if objective.mask_loss == "squared":
        return error
    odds = log_odds(prediction[:, NET2], z_t[:, NET2], logsnr_t, objective)
    # Cross entropy of a label in {-1, 1}: -log sigmoid(label * odds).
    return torch.stack([error[:, FLAIR], functional.softplus(-x[:, NET2] * odds)], dim=1)


def denoising_loss(
    prediction: Tensor, x: Tensor, noise: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """Return the mean weighted error of predictions [b, 2, s, h, w] at logsnr [b], a scalar."""
    error = voxel_error(prediction.float(), x, noise, logsnr_t, objective)
    weight = expand_to(snr_weight(logsnr_t, objective), x) * voxel_weight(x, objective)
    return (weight * error).mean()


def diffusion_loss(
    network: Network,
    x: Tensor,
    *,
    t: Tensor,
    noise: Tensor,
    schedule: ScheduleConfig,
    objective: ObjectiveConfig,
) -> Tensor:
    """Return the loss of a network on a batch (equation 3), a scalar.

    x and noise are [b, 2, s, h, w], t is [b]. If t is uniform, logsnr follows the schedule's
    p(lambda) (paper, section 2). The mean over a batch then accounts for p(lambda), so that no
    weight has to.
    """
    logsnr_t = logsnr_at(t, schedule)
    prediction = network(add_noise(x, noise, logsnr_t), logsnr_t)
    return denoising_loss(prediction, x, noise, logsnr_t, objective)


def undo_lesion_weight(x_hat: Tensor, lesion_weight: float) -> Tensor:
    """Remove the bias of the lesion weight w from NET2's x_hat in [-1, 1].

    Weighting lesion voxels w-fold moves the optimal P(lesion | z_t) from p to
    q = w p / (w p + 1 - p). The inverse is p = q / (w - (w - 1) q).
    """
    q = (x_hat.clamp(-1, 1) + 1) / 2
    return 2 * q / (lesion_weight - (lesion_weight - 1) * q) - 1


def acceptance(*, active: bool, odds_ratio: float) -> float:
    """Return the share of samples to keep so that the odds of activity fall by `odds_ratio`.

    A stage that sees equally many active and inactive cases learns odds of activity that are
    n_inactive / n_active times too high, whatever the condition (case-control sampling: Prentice
    and Pyke 1979). Keeping this share of the active samples, and all inactive ones, undoes that
    exactly (von Neumann's rejection). If the ratio is below 1, the inactive ones are thinned.
    """
    return min(1.0, 1 / odds_ratio if active else odds_ratio)


def redraw_seed(seed: int, x: Tensor, *, odds_ratio: float) -> int | None:
    """Return the seed to draw again with if x [2, s, h, w] is rejected, or None if it is kept.

    Both follow from `seed` and x alone, so that a seed still names one mask. The next seed has 62
    bits, as the seeds of a forecast have.
    """
    share = acceptance(active=bool((x[NET2] > 0).any()), odds_ratio=odds_ratio)
    first = mixed_bits(seed)
    return None if first / WORD < share else mixed_bits(first) >> 2
