"""The networks that each stage of the paper trains (section 2), and the loss of a step of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.load import load_loss, load_of, with_lesions
from lesioncast.diffusion.objective import NET2, ObjectiveConfig, denoising_loss, noised
from lesioncast.diffusion.unet import UNet


class Predicted(NamedTuple):
    """What the networks make of a batch of b cases: the `prediction` [b, 2, s, h, w]. Where the
    model knows of lesion loads, the logits of `load` [b, classes], and the prediction is of the
    cases `with_lesions` alone, as are z and logsnr."""

    prediction: Tensor
    load: Tensor | None = None


class UNetAlone(nn.Module):
    """Stage 1: the UNet learns w096 FLAIR and NET2 jointly, given the arm."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        condition: None,
        covariates: None = None,
        load: Tensor | None = None,
    ) -> Predicted:
        """Given the arm alone."""
        if load is None:
            return Predicted(self.unet(z, logsnr, arm))
        rows = with_lesions(load)
        prediction = self.unet(z, logsnr, arm[rows], None, load[rows])
        return Predicted(prediction, self.unet.load_logits(arm))


class ControlledUNet(nn.Module):
    """Stage 2: the ControlNet learns to steer the frozen UNet by the patient's images."""

    def __init__(self, unet: UNet, control: ControlNet) -> None:
        super().__init__()
        self.unet = unet.eval()
        self.unet.requires_grad_(requires_grad=False)
        self.control = control

    def train(self, mode: bool = True) -> "ControlledUNet":  # noqa: FBT001, FBT002
        """The UNet stays in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        condition: Tensor,
        covariates: Tensor | None = None,
        load: Tensor | None = None,
    ) -> Predicted:
        """`condition` is c_f [b, channels, s, h, w]."""
        if load is None:
            return Predicted(self._predict(z, logsnr, arm, condition, covariates))
        rows = with_lesions(load)
        known = None if covariates is None else covariates[rows]
        prediction = self._predict(z, logsnr, arm[rows], condition[rows], known, load[rows])
        features = self.control.load_features(condition, covariates)
        logits = self.unet.load_logits(arm) + self.control.load_logits(arm, features)
        return Predicted(prediction, logits)

    def _predict(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        condition: Tensor,
        covariates: Tensor | None,
        load: Tensor | None = None,
    ) -> Tensor:
        hint = self.control.encode(condition, covariates)
        residuals = self.control(z, logsnr, arm, hint, load)
        prediction: Tensor = self.unet(z, logsnr, arm, residuals, load)
        return prediction


def to_place(x: Tensor, loads: Sequence[int]) -> tuple[Tensor | None, Tensor]:
    """The lesion load of every case of x [b, 2, s, h, w], and the rows whose lesions are to be
    placed; None and all rows where the model knows of no loads."""
    if not loads:
        return None, torch.arange(len(x), device=x.device)
    load = load_of(x[:, NET2], loads)
    return load, with_lesions(load)


def stage_loss(
    networks: nn.Module,
    x: Tensor,
    noise: Tensor,
    logsnr: Tensor,
    *,
    arm: Tensor,
    condition: Tensor | None,
    covariates: Tensor | None,
    load: Tensor | None,
    objective: ObjectiveConfig,
    oversampled: float = 0.0,
) -> Tensor:
    """Equation 3 on a batch of b cases, and the cross entropy of their loads; a scalar.

    x and noise [r, 2, s, h, w] and logsnr [r] are of the rows `to_place` alone, all others of every
    case. `oversampled` as in `load_loss`.
    """
    predicted: Predicted = networks(
        noised(x, noise, logsnr), logsnr, arm, condition, covariates, load
    )
    loss = denoising_loss(predicted.prediction, x, noise, logsnr, objective)
    if load is None or predicted.load is None:
        return loss
    # Nothing is left to predict of a case without lesions once its load is known.
    return (load > 0).float().mean() * loss + load_loss(
        predicted.load, load, oversampled=oversampled
    )
