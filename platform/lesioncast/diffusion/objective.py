"""Convert predictions to x_hat and compute the weighted loss (equations 2 and 3)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lesioncast.diffusion.schedule import ScheduleConfig, alpha_sigma, expand_to, logsnr_at

Network = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]

FLAIR, NET2 = 0, 1  # channels of x
NUM_TARGETS = 2
WORD = 2**64  # number of values of 64 bits
BASE_LOG_ODDS = -6.0  # prior log odds of a lesion voxel; about 0.1 % of brain voxels are NET2


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the training loss, the same in both stages.

    With prediction `log_odds` the network predicts FLAIR as x, and NET2 as the log odds of a lesion
    without the voxel's own evidence. Bayes' rule adds that evidence in closed form.
    """

    #: Quantity that the network predicts.
    prediction: Literal["v", "eps", "x", "log_odds"] = "v"
    #: Factor on the squared error of x at each noise level: `min_snr` is min(SNR, gamma) (Hang et
    #: al. 2023), `v` is SNR + 1 (plain v-prediction), `x` is 1.
    weighting: Literal["min_snr", "v", "x"] = "min_snr"
    #: Largest SNR weight under `min_snr`.
    min_snr_gamma: float = 5.0
    #: Loss of NET2: squared error of x or, with prediction `log_odds`, cross entropy. Both have the
    #: same minimiser.
    mask_loss: Literal["squared", "cross_entropy"] = "squared"
    #: Log odds that prediction `log_odds` adds to the network's output.
    base_log_odds: float = BASE_LOG_ODDS
    #: Factor on the loss of lesion voxels in the NET2 channels (paper, section 3).
    lesion_weight: float = 10.0
    #: Factor on the loss of FLAIR.
    flair_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.lesion_weight < 1:
            raise ValueError(f"lesion_weight: expected 1 or more, got {self.lesion_weight}")
        if self.mask_loss == "cross_entropy" and self.prediction != "log_odds":
            raise ValueError(
                f"mask_loss: expected prediction log_odds for cross_entropy, got "
                f"{self.prediction}; set mask_loss to squared"
            )


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
    first = _mixed(seed)
    return None if first / WORD < share else _mixed(first) >> 2


def _mixed(number: int) -> int:
    """Return 64 bits that look independent of `number`: SplitMix64 (Steele, Lea, Flood 2014)."""
    bits = (number + 0x9E3779B97F4A7C15) % WORD
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % WORD
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % WORD
    return bits ^ bits >> 31
