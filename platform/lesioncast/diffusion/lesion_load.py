"""How much lesion there will be, decided before where: the classes of NET2's lesion load.

A patient's lesions share a cause, so that most have none and some have many. Networks that decide
voxel by voxel, in few steps, draw them as too independent: too many patients with some. Here the
first decision is one number, p(load | arm, patient), and the networks are told it:
p(x | arm, patient) = sum over loads of p(x | load, arm, patient) p(load | arm, patient).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import zero_module
from lesioncast.diffusion.covariates import covariate_features, covariate_width, missing_covariates
from lesioncast.imaging.covariates import Covariate

HIDDEN = 32
MIN_PROBABILITY = 1e-7  # float32 knows no greater probability below 1
SHIFT_LIMIT, BISECTIONS = 32.0, 18  # to 0.0001 in log odds
GOLDEN, WORD = 0x9E3779B97F4A7C15, 2**64  # odd, and 2^64 over the golden ratio


def lesion_load_class(net2: Tensor, least: Sequence[int]) -> Tensor:
    """The class of a mask, [b] from NET2 in -1 / +1 [b, s, h, w]: 0 is less than `least[0]` voxels.

    Class k has `least[k - 1]` voxels or more, and fewer than `least[k]`.
    """
    voxels = (net2 > 0).flatten(1).sum(1)
    return torch.bucketize(voxels, torch.tensor(least, device=voxels.device), right=True)


def rows_with_lesions(load: Tensor) -> Tensor:
    """The rows of load [b] that have lesions to place; the first where none has."""
    rows = torch.nonzero(load).flatten()
    return rows if len(rows) else rows.new_zeros(1)


def constrain_to_load(x_hat: Tensor, load: Tensor, least: Sequence[int]) -> Tensor:
    """NET2 x_hat [b, s, h, w] that expects lesions where there are to be some, and no more.

    What has at most so many voxels has at most so many in expectation too, whatever z_t; and where
    there is a lesion, at least one. Elsewhere all log odds of the sample are shifted alike. To ask
    for the load's least number, too, would draw it in scattered voxels.
    """
    bounds = torch.tensor([0, *least, x_hat[0].numel() + 1], device=x_hat.device)
    chance = (x_hat + 1) / 2
    expected = chance.flatten(1).sum(1)
    wanted = expected.clamp(load.clamp(max=1).to(expected), bounds[load + 1] - 1.0)
    kept = x_hat.clone()
    for row in torch.nonzero(expected != wanted).flatten().tolist():
        kept[row] = 2 * shift_log_odds_to_sum(chance[row], wanted[row]) - 1
    return kept


def ensure_one_lesion(x: Tensor) -> Tensor:
    """A sample's NET2 [s, h, w] that is to have lesions: where none is likelier than not, the
    likeliest voxel is one."""
    if (x > 0).any():
        return x
    kept = x.flatten().clone()
    kept[kept.argmax()] = 1.0
    return kept.view_as(x)


def shift_log_odds_to_sum(chance: Tensor, total: Tensor) -> Tensor:
    """Probabilities, of any shape, with all log odds shifted by what makes their sum `total`."""
    if total == 0:
        return torch.zeros_like(chance)
    log_odds = chance.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()
    below, above = -SHIFT_LIMIT, SHIFT_LIMIT
    for _ in range(BISECTIONS):
        shift = (below + above) / 2
        if torch.sigmoid(log_odds + shift).sum() < total:
            below = shift
        else:
            above = shift
    return torch.sigmoid(log_odds + above)


class LoadExpectations(NamedTuple):
    """What is known before anything is drawn, each [arm]: P(active), and the expectations of the
    number of lesions n and of log(1 + n)."""

    p_active: Tensor
    lesions: Tensor
    log_lesions: Tensor


class LesionLoadPrior(nn.Module):
    """p(load | arm, patient): a small perceptron on numbers alone, so that it can be fitted to all
    training cases at once and needs no other network; at first all classes are alike.

    `lesions` and `log_lesions` [class] are the means, over those cases that had a load, of their
    number of lesions n and of log(1 + n).
    """

    lesions: Tensor
    log_lesions: Tensor

    def __init__(
        self, patient: int, *, arms: int, classes: int, covariates: Sequence[Covariate]
    ) -> None:
        super().__init__()
        self.arms, self.covariates = arms, tuple(covariates)
        features = patient + covariate_width(covariates) + arms
        self.layers = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.SiLU(), zero_module(nn.Linear(HIDDEN, classes))
        )
        self.register_buffer("lesions", torch.zeros(classes))
        self.register_buffer("log_lesions", torch.zeros(classes))

    def patient_features(self, burden: Tensor, covariates: Tensor | None) -> Tensor:
        """What is told of patients, [b, feature], from their burden [b, channel, 3] and encoded
        covariates [b, covariate], NaN where absent; None is all absent."""
        if not self.covariates:
            return burden.flatten(1)
        if covariates is None:
            covariates = missing_covariates(self.covariates, burden)
        return torch.cat([burden.flatten(1), covariate_features(covariates, self.covariates)], 1)

    def forward(self, patient: Tensor, arm: Tensor) -> Tensor:
        """Logits of the classes [b, classes] under arm [b], the last of which is null."""
        chosen = functional.one_hot(arm, self.arms).to(patient)
        logits: Tensor = self.layers(torch.cat([patient, chosen], dim=1))
        return logits

    def expected_outcomes(self, patient: Tensor) -> LoadExpectations:
        """What it says of one patient [1, feature] under every arm but the null one."""
        arms = torch.arange(self.arms - 1, device=patient.device)
        chance = self(patient.expand(len(arms), -1), arms).double().softmax(1)
        return LoadExpectations(
            1 - chance[:, 0], chance @ self.lesions.double(), chance @ self.log_lesions.double()
        )


def sample_load_class(logits: Tensor, seed: int) -> int:
    """The class that a sample's seed draws from logits [classes].

    By the inverse of the distribution function: one seed under two arms draws the same quantile, so
    that arms are compared on the patient's same luck. The quantiles of consecutive seeds are a Weyl
    sequence by the golden ratio, spread out evenly however many they are.
    """
    uniform = torch.tensor([seed * GOLDEN % WORD / WORD], dtype=torch.float64)
    below = logits.double().cpu().softmax(0).cumsum(0)[:-1].contiguous()
    return int(torch.searchsorted(below, uniform, right=True))
