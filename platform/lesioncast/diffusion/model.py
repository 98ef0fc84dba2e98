"""The two networks as one forecaster: condition, arm and seed in, a NET2 mask out."""

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
from lesioncast.diffusion.sampler import SamplerConfig, sample
from lesioncast.diffusion.schedule import ScheduleConfig
from lesioncast.diffusion.unet import UNet, UNetConfig


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
        covariates: Tensor | None = None,
    ) -> Denoiser:
        """x_hat under classifier-free guidance (Ho and Salimans 2022), clamped to [-1, 1].

        All conditions are guided at once: the null arm goes with the null image and without
        covariates. The bias of the lesion weight is taken out of the NET2 channel last.
        """
        hint = self.control.encode(condition, covariates)
        null_hint = self.control.encode(torch.zeros_like(condition)) if guidance != 1 else None
        null_arm = torch.full_like(arm, self.config.unet.null_arm)

        def denoise(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
            x_hat = self.predict(z_t, logsnr_t, arm, hint)
            if null_hint is not None:
                unconditional = self.predict(z_t, logsnr_t, null_arm, null_hint)
                x_hat = unconditional + guidance * (x_hat - unconditional)
            x_hat = x_hat.clamp(-1, 1)
            x_hat[:, NET2] = unweighted_probability(
                x_hat[:, NET2], self.config.objective.lesion_weight
            )
            return x_hat

        return denoise

    @torch.no_grad()
    def draw(
        self,
        condition: Tensor,
        arm: Tensor,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """One NET2 mask per row: condition [n, channels, s, h, w], arm [n] -> bool [n, s, h, w].

        `covariates` [n, covariate] are encoded, NaN where absent; None leaves all of them out.
        """
        reduced = sampler.precision == "bfloat16"
        with torch.autocast(condition.device.type, dtype=torch.bfloat16, enabled=reduced):
            x = sample(
                self.denoiser(condition, arm, guidance=sampler.guidance, covariates=covariates),
                shape=(self.config.unet.target_channels, *condition.shape[2:]),
                seeds=seeds,
                schedule=self.config.schedule,
                sampler=sampler,
                device=condition.device,
            )
        return x[:, NET2] > 0
