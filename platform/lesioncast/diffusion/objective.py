"""What the network predicts, how x_hat is read from it, and the weighted loss (equations 2, 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lesioncast.diffusion.schedule import ScheduleConfig, alpha_sigma, logsnr_at, per_sample

Network = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]

FLAIR, NET2 = 0, 1


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss of both stages.

    `weighting` is the factor on the squared x error at each noise level: `min_snr` is
    min(SNR, gamma) (Hang et al. 2023), `v` is SNR + 1 (plain v-prediction), `x` is 1.
    `lesion_weight` multiplies the squared error of NET2 voxels on the NET2 channels (paper,
    section 3); `flair_weight` multiplies that of the FLAIR channels.
    """

    prediction: Literal["v", "eps", "x"] = "v"
    weighting: Literal["min_snr", "v", "x"] = "min_snr"
    min_snr_gamma: float = 5.0
    lesion_weight: float = 10.0
    flair_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.lesion_weight < 1:
            raise ValueError(f"lesion_weight must be 1 or more, got {self.lesion_weight}")


def predicted_x(prediction: Tensor, z_t: Tensor, logsnr_t: Tensor, *, kind: str) -> Tensor:
    """x_hat from the network's output (Salimans and Ho 2022, appendix D). [b, ...] as `z_t`."""
    alpha, sigma = (per_sample(value, z_t) for value in alpha_sigma(logsnr_t))
    if kind == "v":
        return alpha * z_t - sigma * prediction
    if kind == "eps":
        return (z_t - sigma * prediction) / alpha
    return prediction


def x_weight(logsnr_t: Tensor, objective: ObjectiveConfig) -> Tensor:
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


def squared_error(
    prediction: Tensor, x: Tensor, noise: Tensor, logsnr_t: Tensor, *, kind: str
) -> Tensor:
    """(x - x_hat)^2 written in the predicted quantity, so that no division loses precision."""
    alpha, sigma = (per_sample(value, x) for value in alpha_sigma(logsnr_t))
    if kind == "v":
        return sigma**2 * (prediction - (alpha * noise - sigma * x)) ** 2
    if kind == "eps":
        return (sigma / alpha) ** 2 * (prediction - noise) ** 2
    return (prediction - x) ** 2


def diffusion_loss(
    network: Network,
    x: Tensor,
    *,
    t: Tensor,
    noise: Tensor,
    schedule: ScheduleConfig,
    objective: ObjectiveConfig,
) -> Tensor:
    """The weighted denoising loss of a batch: x, noise [b, 2, s, h, w], t [b]; a scalar."""
    logsnr_t = logsnr_at(t, schedule)
    alpha, sigma = (per_sample(value, x) for value in alpha_sigma(logsnr_t))
    prediction = network(alpha * x + sigma * noise, logsnr_t).float()
    error = squared_error(prediction, x, noise, logsnr_t, kind=objective.prediction)
    weight = per_sample(x_weight(logsnr_t, objective), x) * voxel_weight(x, objective)
    return (weight * error).mean()


def unweighted_probability(x_hat: Tensor, lesion_weight: float) -> Tensor:
    """NET2 x_hat without the bias of the lesion weight w, as `x_hat` in [-1, 1].

    Weighting lesion voxels w-fold moves the optimal q = P(lesion | z_t) from p to
    q = w p / (w p + 1 - p); its inverse is p = q / (w - (w - 1) q).
    """
    q = (x_hat.clamp(-1, 1) + 1) / 2
    return 2 * q / (lesion_weight - (lesion_weight - 1) * q) - 1
