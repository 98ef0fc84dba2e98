"""Networks that each stage of the paper trains (section 2), and the loss of a training step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.lesion_load import lesion_load_class, rows_with_lesions
from lesioncast.diffusion.model import net2_offset
from lesioncast.diffusion.objective import NET2, diffusion_loss
from lesioncast.diffusion.settings.process import ObjectiveConfig, ScheduleConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.training.data.dataset import Batch


class PretrainModule(nn.Module):
    """Stage 1: the UNet learns FLAIR and NET2 at outcome jointly, given the arm."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        batch: Batch,
        lesion_load: Tensor | None = None,
        net2_offset: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction [b, 2, s, h, w], given arm, lesion load and base map."""
        prediction: Tensor = self.unet(z, logsnr, batch.arm, None, lesion_load, net2_offset)
        return prediction


class FinetuneModule(nn.Module):
    """Stage 2: the ControlNet learns to steer the frozen UNet by the patient's images.

    The lesion load prior is frozen too. It is fitted separately.
    """

    def __init__(self, unet: UNet, control: ControlNet) -> None:
        super().__init__()
        self.unet = unet.eval()
        self.unet.requires_grad_(requires_grad=False)
        self.control = control
        # DDP would wait for a gradient of every trainable weight, and the prior gets none here.
        if control.lesion_load_prior is not None:
            control.lesion_load_prior.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "FinetuneModule":  # noqa: FBT001, FBT002
        """Set the training mode of the ControlNet. The UNet stays in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        batch: Batch,
        lesion_load: Tensor | None = None,
        net2_offset: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction [b, 2, s, h, w], given the whole condition of the batch."""
        assert batch.condition is not None
        patient = self.control.encode(batch.condition, batch.covariates, lesion_load=False)
        residuals = self.control(z, logsnr, batch.arm, patient, lesion_load)
        prediction: Tensor = self.unet(z, logsnr, batch.arm, residuals, lesion_load, net2_offset)
        return prediction


@dataclass(frozen=True)
class LossInputs:
    """Inputs of the loss: the cases to train on, with their noise levels and noise."""

    #: Cases of a batch that pass through the networks, r rows.
    batch: Batch
    #: Lesion load classes [r]; None for a model without lesion loads.
    lesion_load: Tensor | None
    #: Noise levels in [0, 1), [r].
    t: Tensor
    #: Standard normal noise, [r, 2, s, h, w].
    noise: Tensor


def rows_to_train_on(x: Tensor, thresholds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return the rows of x [b, 2, s, h, w] that have lesions, [r], and their lesion loads [r].

    Without `thresholds`, for a model without lesion loads, return all rows and None.
    """
    if not thresholds:
        return torch.arange(len(x), device=x.device), None
    lesion_load = lesion_load_class(x[:, NET2], thresholds)
    rows = rows_with_lesions(lesion_load)
    return rows, lesion_load[rows]


def stage_loss(
    networks: nn.Module,
    inputs: LossInputs,
    *,
    schedule: ScheduleConfig,
    objective: ObjectiveConfig,
    cases: int,
) -> Tensor:
    """Return the mean loss of a batch of `cases` cases (equation 3), a scalar.

    A case without lesions has loss 0 in a model with lesion loads: once its load is known, nothing
    is left to predict. `rows_to_train_on` leaves such cases out of `inputs`, except for one if
    there is no other.
    """
    batch, lesion_load = inputs.batch, inputs.lesion_load
    # A batch without any lesion keeps one case, whose loss counts nothing: it has no rate of 0.
    voxels = (batch.x[:, NET2] > 0).flatten(1).sum(1).clamp(min=1)
    offset = net2_offset(batch.log_density, voxels, objective)

    def predict(z: Tensor, logsnr: Tensor) -> Tensor:
        prediction: Tensor = networks(z, logsnr, batch, lesion_load, offset)
        return prediction

    loss = diffusion_loss(
        predict, batch.x, t=inputs.t, noise=inputs.noise, schedule=schedule, objective=objective
    )
    return loss if lesion_load is None else loss * ((lesion_load > 0).sum() / cases)
