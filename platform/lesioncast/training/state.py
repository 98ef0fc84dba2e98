"""What changes while a stage trains: weights, their average, and the optimiser's moments."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lesioncast.bundle.io import Weights
from lesioncast.training.settings import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")

Parameters = dict[str, nn.Parameter]


@dataclass
class TrainState:
    """`networks` after `step` steps: the `trained` parameters, their average, and the optimiser."""

    networks: nn.Module
    trained: Parameters
    averaged: Weights
    optimizer: torch.optim.Adam
    step: int = 0

    def update(self, settings: TrainSettings) -> None:
        """One step of Adam on the gradients, which are cleared, and of the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_ema(self.averaged, self.trained, ema_decay(self.step, settings.ema))
        self.step += 1

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Everything that a resumed run needs, as groups of named tensors."""
        moments = {
            kind: {name: self.optimizer.state[p][kind] for name, p in self.trained.items()}
            for kind in MOMENTS
        }
        return {"weights": self.trained, "ema": self.averaged, **moments}

    def restore(self, step: int, read: Callable[[str], Weights]) -> None:
        """Take over `step` and the groups that `tensors` gave, each from `read(group)`."""
        self.step = step
        _copy(read("weights"), self.trained)
        _copy(read("ema"), self.averaged)
        moments = {kind: read(kind) for kind in MOMENTS}
        for name, parameter in self.trained.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                **{kind: moments[kind][name].to(parameter.device) for kind in MOMENTS},
            }


def initial_state(networks: nn.Module, settings: TrainSettings) -> TrainState:
    """The state before the first step: the average starts at the weights."""
    trained = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    averaged = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=settings.learning_rate, fused=True)
    return TrainState(networks, trained, averaged, optimizer)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


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
