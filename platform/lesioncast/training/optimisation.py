"""The optimiser's schedule and the averaged weights, in closed form."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lesioncast.training.settings import TrainSettings

Weights = dict[str, Tensor]


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of `step`, counted from 0: a linear rise over `warmup` steps, then a cosine to 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    passed = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * passed)) / 2


def ema_decay(step: int, ema: float) -> float:
    """The decay at `step`, counted from 0: early weights are forgotten fast."""
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(averaged: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """averaged <- decay * averaged + (1 - decay) * weights, in place."""
    torch._foreach_lerp_(list(averaged.values()), list(weights.values()), 1 - decay)
