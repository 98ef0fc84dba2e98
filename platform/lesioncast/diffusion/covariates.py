"""Encode clinical covariates (age, sex, EDSS and others that a trial records) as a condition.

Covariates are the paper's first future direction. How they enter the networks is a choice of this
project.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lesioncast.diffusion.blocks import zero_module
from lesioncast.imaging.covariates import Covariate


def covariate_features(values: Tensor, covariates: Sequence[Covariate]) -> Tensor:
    """Return network features [b, feature] of encoded values [b, covariate].

    A value that is not finite is missing. Each covariate gives its value (one-hot for levels) and a
    flag for its presence. A missing covariate is all zeros. No observed value is, since its flag
    is 1.
    """
    features = []
    for value, covariate in zip(values.unbind(1), covariates, strict=True):
        present = value.isfinite().to(values.dtype).unsqueeze(1)
        filled = value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if covariate.levels:
            feature = nn.functional.one_hot(filled.long(), len(covariate.levels)) * present
        else:
            feature = filled.unsqueeze(1)
        features += [feature, present]
    return torch.cat(features, dim=1)


def missing_covariates(covariates: Sequence[Covariate], like: Tensor) -> Tensor:
    """Return encoded values [b, covariate] that are all missing, one row per row of `like`."""
    return like.new_full((len(like), len(covariates)), math.nan)


def covariate_width(covariates: Sequence[Covariate]) -> int:
    """Return the number of features that `covariate_features` gives."""
    return sum((len(covariate.levels) or 1) + 1 for covariate in covariates)


class CovariateEmbedding(nn.Module):
    """Embedding of covariates, added to the embedding of noise level and arm. It starts at zero."""

    def __init__(self, covariates: Sequence[Covariate], width: int) -> None:
        super().__init__()
        self.covariates = tuple(covariates)
        self.layers = nn.Sequential(
            nn.Linear(covariate_width(covariates), width),
            nn.SiLU(),
            zero_module(nn.Linear(width, width)),
        )

    def forward(self, values: Tensor) -> Tensor:
        """Return the embedding [b, width] of encoded values [b, covariate]."""
        embedding: Tensor = self.layers(covariate_features(values, self.covariates))
        return embedding
