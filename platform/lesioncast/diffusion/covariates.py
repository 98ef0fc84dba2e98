"""Clinical covariates as a third condition: age, sex, EDSS and what else a trial records.

The paper's first future direction; how they enter is this project's choice.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lesioncast.diffusion.blocks import zero_module
from lesioncast.imaging.covariates import Covariate


def covariate_features(values: Tensor, covariates: Sequence[Covariate]) -> Tensor:
    """[b, feature] from encoded values [b, covariate], not finite where absent.

    Each covariate gives its value (one-hot for levels) and whether it is present: an absent one is
    all zeros, which no value is, not even the mean.
    """
    features = []
    for value, covariate in zip(values.unbind(1), covariates, strict=True):
        present = value.isfinite().to(values.dtype).unsqueeze(1)
        known = value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if covariate.levels:
            shown = nn.functional.one_hot(known.long(), len(covariate.levels)) * present
        else:
            shown = known.unsqueeze(1)
        features += [shown, present]
    return torch.cat(features, dim=1)


def missing_covariates(covariates: Sequence[Covariate], like: Tensor) -> Tensor:
    """Encoded values [b, covariate] of as many patients as `like` has rows, none of them known."""
    return like.new_full((len(like), len(covariates)), math.nan)


def covariate_width(covariates: Sequence[Covariate]) -> int:
    """How many features `covariate_features` gives."""
    return sum((len(each.levels) or 1) + 1 for each in covariates)


class CovariateEmbedding(nn.Module):
    """Encoded covariates [b, covariate] to what is added to an embedding of `width`, at first 0."""

    def __init__(self, covariates: Sequence[Covariate], width: int) -> None:
        super().__init__()
        self.covariates = tuple(covariates)
        self.layers = nn.Sequential(
            nn.Linear(covariate_width(covariates), width),
            nn.SiLU(),
            zero_module(nn.Linear(width, width)),
        )

    def forward(self, values: Tensor) -> Tensor:
        embedding: Tensor = self.layers(covariate_features(values, self.covariates))
        return embedding
