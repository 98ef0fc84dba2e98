"""State of a training run: weights, their moving average, and the optimiser's moments."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lesioncast.diffusion.voxel_mlp import VoxelMLP
from lesioncast.training.settings import TrainSettings

if TYPE_CHECKING:  # which needs safetensors: GPU benchmarks train without it
    from lesioncast.bundle.io import Weights

RATE = "rate"  # key of a group of weights: factor on the learning rate
MOMENTS = ("exp_avg", "exp_avg_sq")

Parameters = dict[str, nn.Parameter]


@dataclass
class TrainState:
    """State after `step` optimiser steps."""

    networks: nn.Module
    #: Trained parameters of the networks, by name.
    parameters: Parameters
    #: Exponential moving average of the parameters, by name.
    ema: "Weights"
    optimizer: torch.optim.Adam
    step: int = 0

    def update(self, settings: TrainSettings) -> None:
        """Take one step of Adam, clear the gradients, and update the moving average."""
        for group in self.optimizer.param_groups:
            group["lr"] = group[RATE] * learning_rate(self.step, settings)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_ema(self.ema, self.parameters, ema_decay(self.step, settings.ema))
        self.step += 1

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return everything that a resumed run needs, as groups of named tensors."""
        moments = {
            moment: {name: self.optimizer.state[p][moment] for name, p in self.parameters.items()}
            for moment in MOMENTS
        }
        return {"weights": self.parameters, "ema": self.ema, **moments}

    def restore(self, step: int, read: Callable[[str], "Weights"]) -> None:
        """Restore `step` and the groups that `tensors` gave; `read` returns a group by name."""
        self.step = step
        _copy(read("weights"), self.parameters)
        _copy(read("ema"), self.ema)
        moments = {moment: read(moment) for moment in MOMENTS}
        for name, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                **{moment: moments[moment][name].to(parameter.device) for moment in MOMENTS},
            }


def initial_state(networks: nn.Module, settings: TrainSettings) -> TrainState:
    """Return the state before the first step. The moving average starts at the weights."""
    parameters = {name: p for name, p in networks.named_parameters() if p.requires_grad}
    ema = {name: p.detach().clone() for name, p in parameters.items()}
    voxels = voxel_weights(networks)
    groups = [
        {"params": [p for p in parameters.values() if (p in voxels) == of_voxels], RATE: rate}
        for of_voxels, rate in ((False, 1.0), (True, settings.voxel_rate))
    ]
    optimizer = torch.optim.Adam(
        [group for group in groups if group["params"]], lr=settings.learning_rate, fused=True
    )
    return TrainState(networks, parameters, ema, optimizer)


def voxel_weights(networks: nn.Module) -> set[nn.Parameter]:
    """Return the weights of the voxel perceptrons of networks."""
    perceptrons = (part for part in networks.modules() if isinstance(part, VoxelMLP))
    return {weight for perceptron in perceptrons for weight in perceptron.parameters()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy the tensors of `source` into those of the same names in `target`."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the learning rate of `step`, counted from 0.

    It rises linearly over `warmup` steps and then decays to 0 as a cosine.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    return cosine_decay(
        step - settings.warmup, start=settings.learning_rate, steps=settings.steps - settings.warmup
    )


def cosine_decay(step: int, *, start: float, steps: int) -> float:
    """Return the value of a cosine that decays from `start` at step 0 to 0 at step `steps`."""
    progress = step / max(1, steps)
    return start * (1 + math.cos(math.pi * progress)) / 2


def ema_decay(step: int, ema: float) -> float:
    """Return the decay of the moving average at `step`, counted from 0.

    The decay is small at first, so that the initial weights are forgotten fast.
    """
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_ema(ema: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float) -> None:
    """Set ema to decay * ema + (1 - decay) * weights, in place."""
    torch._foreach_lerp_(list(ema.values()), list(weights.values()), 1 - decay)
