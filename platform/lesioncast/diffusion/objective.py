"""What the network predicts, how x_hat is read from it, and the weighted loss (equations 2, 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lesioncast.diffusion.schedule import ScheduleConfig, alpha_sigma, expand_to, logsnr_at

Network = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]

FLAIR, NET2 = 0, 1
BASE_LOG_ODDS = -6.0  # about 0.1 % of brain is NET2, of which odds are counted


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss of both stages.

    `prediction` is what the network's output means: v, eps or x, or `odds`: FLAIR as x and NET2 as
    the log odds of a lesion before the voxel's own evidence, to which Bayes' rule adds the evidence
    in closed form (`log_odds`), counted from `base_log_odds`. `weighting` is the factor on the
    squared x error at each noise level: `min_snr` is min(SNR, gamma) (Hang et al. 2023), `v` is
    SNR + 1 (plain v-prediction), `x` is 1. `mask_loss` scores NET2 by the squared x error or,
    with `odds`, by cross entropy, which has the same minimiser. `lesion_weight` multiplies the loss
    of NET2 voxels on the NET2 channels (paper, section 3), `flair_weight` that of FLAIR.
    """

    prediction: Literal["v", "eps", "x", "log_odds"] = "v"
    weighting: Literal["min_snr", "v", "x"] = "min_snr"
    min_snr_gamma: float = 5.0
    mask_loss: Literal["squared", "cross_entropy"] = "squared"
    base_log_odds: float = BASE_LOG_ODDS
    lesion_weight: float = 10.0
    flair_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.lesion_weight < 1:
            raise ValueError(f"lesion_weight must be 1 or more, got {self.lesion_weight}")
        if self.mask_loss == "cross_entropy" and self.prediction != "log_odds":
            raise ValueError(
                f"mask_loss cross_entropy needs prediction log_odds, got {self.prediction}; "
                "use mask_loss squared"
            )


def log_likelihood_ratio(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
    """The log likelihood ratio of a lesion that a voxel's own z_t gives, as `z_t` [b, ...].

    For x in {-1, 1}: log N(z; alpha, sigma^2) - log N(z; -alpha, sigma^2) = 2 alpha z / sigma^2.
    """
    alpha, sigma = alpha_sigma(logsnr_t)
    return expand_to(2 * alpha / sigma**2, z_t) * z_t


def log_odds(odds: Tensor, z_t: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Log odds of a lesion given z_t: the network's, plus the evidence of the voxel itself."""
    return objective.base_log_odds + odds + log_likelihood_ratio(z_t, logsnr_t)


def predict_x0(
    prediction: Tensor, z_t: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """x_hat from the network's output (Salimans and Ho 2022, appendix D). [b, 2, s, h, w]."""
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
    """w(lambda) on the squared x error, [b]."""
    if objective.weighting == "min_snr":
        return logsnr_t.exp().clamp(max=objective.min_snr_gamma)
    if objective.weighting == "v":
        return logsnr_t.exp() + 1
    return torch.ones_like(logsnr_t)


def voxel_weight(x: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Weights of the squared error, as `x` [b, 2, s, h, w]: lesions count on NET2 channels only."""
    weight = torch.full_like(x, objective.flair_weight)
    weight[:, NET2] = torch.where(x[:, NET2] > 0, objective.lesion_weight, 1.0)
    return weight


def add_noise(x: Tensor, noise: Tensor, logsnr_t: Tensor) -> Tensor:
    """z_t of x and noise [b, 2, s, h, w] at logsnr [b] (equation 1)."""
    alpha, sigma = (expand_to(value, x) for value in alpha_sigma(logsnr_t))
    return alpha * x + sigma * noise


def voxel_error(
    prediction: Tensor, x: Tensor, noise: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """(x - x_hat)^2, or cross entropy on NET2; as `x` [b, 2, s, h, w].

    Written in the predicted quantity, so that no division loses precision.
    """
    alpha, sigma = (expand_to(value, x) for value in alpha_sigma(logsnr_t))
    if objective.prediction == "v":
        return sigma**2 * (prediction - (alpha * noise - sigma * x)) ** 2
    if objective.prediction == "eps":
        return (sigma / alpha) ** 2 * (prediction - noise) ** 2
    z_t = add_noise(x, noise, logsnr_t)
    error = (predict_x0(prediction, z_t, logsnr_t, objective) - x) ** 2
    if objective.mask_loss == "squared":
        return error
    odds = log_odds(prediction[:, NET2], z_t[:, NET2], logsnr_t, objective)
    return torch.stack([error[:, FLAIR], functional.softplus(-x[:, NET2] * odds)], dim=1)


def denoising_loss(
    prediction: Tensor, x: Tensor, noise: Tensor, logsnr_t: Tensor, objective: ObjectiveConfig
) -> Tensor:
    """The weighted error of a batch's predictions [b, 2, s, h, w] at logsnr [b]; a scalar."""
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
    """The denoising loss of a network on a batch: x, noise [b, 2, s, h, w], t [b]; a scalar.

    Where t is uniform, logsnr follows the schedule's p(lambda) (paper, section 2), which is
    therefore in the mean over a batch already and in no weight.
    """
    logsnr_t = logsnr_at(t, schedule)
    prediction = network(add_noise(x, noise, logsnr_t), logsnr_t)
    return denoising_loss(prediction, x, noise, logsnr_t, objective)


def undo_lesion_weight(x_hat: Tensor, lesion_weight: float) -> Tensor:
    """NET2 x_hat without the bias of the lesion weight w, as `x_hat` in [-1, 1].

    Weighting lesion voxels w-fold moves the optimal q = P(lesion | z_t) from p to
    q = w p / (w p + 1 - p); its inverse is p = q / (w - (w - 1) q).
    """
    q = (x_hat.clamp(-1, 1) + 1) / 2
    return 2 * q / (lesion_weight - (lesion_weight - 1) * q) - 1
