"""The two networks as one forecaster: condition, arm and seed in, a NET2 mask out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lesioncast.diffusion.controlnet import ControlConfig, ControlNet, Hint
from lesioncast.diffusion.covariates import Covariate
from lesioncast.diffusion.objective import (
    NET2,
    Denoiser,
    ObjectiveConfig,
    predicted_x,
    unweighted_probability,
)
from lesioncast.diffusion.precision import autocast
from lesioncast.diffusion.sampler import SamplerConfig, sample
from lesioncast.diffusion.schedule import ScheduleConfig, per_sample
from lesioncast.diffusion.unet import UNet, UNetConfig

CPU_ROWS = 8  # a third less time a sample than single rows; 16 is no faster
UNDECIDED = 1e-6  # 1 - |x_hat|, so a voxel's probability of the other answer is half of it


@dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the weights; stored as JSON beside them."""

    arms: tuple[str, ...]
    unet: UNetConfig = field(default_factory=UNetConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    covariates: tuple[Covariate, ...] = ()

    def __post_init__(self) -> None:
        if len(self.arms) != self.unet.arms:
            raise ValueError(
                f"unet.arms is {self.unet.arms}, but {len(self.arms)} arms are named: "
                f"{', '.join(self.arms)}; set unet.arms to their number"
            )


class Model:
    """Stage 2's networks, ready to draw masks."""

    def __init__(self, unet: UNet, control: ControlNet, config: ModelConfig) -> None:
        self.unet = unet.eval()
        self.control = control.eval()
        self.config = config

    def predict(self, z: Tensor, logsnr: Tensor, arm: Tensor, hint: Hint) -> Tensor:
        """x_hat [b, 2, s, h, w] given the condition's hint and the arm."""
        residuals = self.control(z, logsnr, arm, hint)
        prediction = self.unet(z, logsnr, arm, residuals).float()
        return predicted_x(prediction, z, logsnr, self.config.objective)

    def denoiser(
        self,
        condition: Tensor,
        arm: Tensor,
        *,
        guidance: float,
        interval: tuple[float, float] = (-math.inf, math.inf),
        covariates: Tensor | None = None,
    ) -> Denoiser:
        """x_hat under classifier-free guidance (Ho and Salimans 2022), clamped to [-1, 1].

        All conditions are guided at once: the null arm goes with the null image and without
        covariates. Outside the `interval` of logsnr x_hat is conditional (Kynkaanniemi et al. 2024,
        Applying guidance in a limited interval). The bias of the lesion weight is taken out of the
        NET2 channel last.
        """
        hint = self.control.encode(condition, covariates)
        null_hint = self.control.encode(torch.zeros_like(condition)) if guidance != 1 else None
        null_arm = torch.full_like(arm, self.config.unet.null_arm)

        def denoise(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
            x_hat = self.predict(z_t, logsnr_t, arm, hint)
            guided = (interval[0] <= logsnr_t) & (logsnr_t <= interval[1])
            if null_hint is not None and guided.any():
                unconditional = self.predict(z_t, logsnr_t, null_arm, null_hint)
                extrapolated = unconditional + guidance * (x_hat - unconditional)
                x_hat = torch.where(per_sample(guided, x_hat), extrapolated, x_hat)
            x_hat = x_hat.clamp(-1, 1)
            x_hat[:, NET2] = unweighted_probability(
                x_hat[:, NET2], self.config.objective.lesion_weight
            )
            return x_hat

        return denoise

    @torch.no_grad()
    def draw_x(
        self,
        condition: Tensor,
        arm: Tensor,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """One x per row: condition [n, channels, s, h, w], arm [n] -> [n, 2, s, h, w].

        `covariates` [n, covariate] are encoded, NaN where absent; None leaves all of them out.

        Kernels sum in an order that depends on the batch size, and a mask must not: on a CPU the
        networks always see `CPU_ROWS` rows, the last ones repeated where fewer are asked for. Nor
        may it depend on the number of threads, which is its caller's to hold. On a GPU the batch
        stays whole, and a sample's x differs from that of another batch by rounding. Where x_hat is
        a probability (prediction odds), a sample ends early once its NET2 is `settled`: other
        predictions overshoot, and an x_hat clamped to 1 says nothing of how sure it is.
        """
        ends_early = self.config.objective.prediction == "odds"
        size = CPU_ROWS if condition.device.type == "cpu" else len(condition)
        with autocast(sampler.precision, condition.device):
            parts = [
                sample(
                    self.denoiser(
                        condition[rows],
                        arm[rows],
                        guidance=sampler.guidance,
                        interval=sampler.guidance_interval,
                        covariates=None if covariates is None else covariates[rows],
                    ),
                    shape=(self.config.unet.target_channels, *condition.shape[2:]),
                    seeds=[seeds[row] for row in rows],
                    schedule=self.config.schedule,
                    sampler=sampler,
                    device=condition.device,
                    settled=settled if ends_early else None,
                )
                for rows in filled(len(condition), size)
            ]
        return torch.cat(parts)[: len(condition)]

    def draw(
        self,
        condition: Tensor,
        arm: Tensor,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """One NET2 mask per row, bool [n, s, h, w]: lesions are where `draw_x` is positive."""
        return self.draw_x(condition, arm, seeds, sampler, covariates=covariates)[:, NET2] > 0


def settled(x_hat: Tensor) -> Tensor:
    """Whether every NET2 voxel of x_hat [n, 2, s, h, w] is decided, bool [n].

    Later evaluations have more evidence for the same, so they cannot turn the mask.
    """
    return (x_hat[:, NET2].abs() > 1 - UNDECIDED).flatten(1).all(1)


def filled(number: int, size: int) -> list[list[int]]:
    """Rows 0 .. number - 1 in batches of `size`, the last row repeated to fill the last batch."""
    return [
        [min(row, number - 1) for row in range(first, first + size)]
        for first in range(0, number, size)
    ]
