"""The networks that each stage of the paper trains (section 2), and the loss of a step of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.lesion_load import lesion_load_class, rows_with_lesions
from lesioncast.diffusion.objective import NET2, ObjectiveConfig, add_noise, denoising_loss
from lesioncast.diffusion.unet import UNet


class PretrainModule(nn.Module):
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
    ) -> Tensor:
        """The prediction [b, 2, s, h, w], given the arm and the lesion load."""
        prediction: Tensor = self.unet(z, logsnr, arm, None, load)
        return prediction


class FinetuneModule(nn.Module):
    """Stage 2: the ControlNet learns to steer the frozen UNet by the patient's images.

    The prior of its lesion load is not trained here but fitted by itself.
    """

    def __init__(self, unet: UNet, control: ControlNet) -> None:
        super().__init__()
        self.unet = unet.eval()
        self.unet.requires_grad_(requires_grad=False)
        self.control = control
        if control.load_prior is not None:
            control.load_prior.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "FinetuneModule":  # noqa: FBT001, FBT002
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
    ) -> Tensor:
        """The prediction [b, 2, s, h, w]; `condition` is c_f [b, channels, s, h, w]."""
        hint = self.control.encode(condition, covariates)
        residuals = self.control(z, logsnr, arm, hint, load)
        prediction: Tensor = self.unet(z, logsnr, arm, residuals, load)
        return prediction


def rows_to_train_on(x: Tensor, loads: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The rows of x [b, 2, s, h, w] whose lesions are to be placed, [r], and their lesion load.

    All rows and None where the model knows of no loads.
    """
    if not loads:
        return torch.arange(len(x), device=x.device), None
    load = lesion_load_class(x[:, NET2], loads)
    rows = rows_with_lesions(load)
    return rows, load[rows]


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
    cases: int,
) -> Tensor:
    """Equation 3 on the rows `to_place` of a batch of so many cases; a scalar.

    Nothing is left to predict of a case without lesions once its load is known: it counts as 0.
    """
    prediction = networks(add_noise(x, noise, logsnr), logsnr, arm, condition, covariates, load)
    loss = denoising_loss(prediction, x, noise, logsnr, objective)
    return loss if load is None else loss * ((load > 0).sum() / cases)
