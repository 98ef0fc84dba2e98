"""Classifier-free guidance: combine the conditional and the unconditional prediction."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.diffusion.lesion_load import constrain_to_load
from lesioncast.diffusion.objective import NET2, undo_lesion_weight
from lesioncast.diffusion.spatial.base_map import hold_voxels


class Predictor(Protocol):
    """Networks that return x_hat [b, 2, s, h, w] of z_t under a condition."""

    def __call__(self, z: Tensor, logsnr: Tensor, condition: "BatchCondition") -> Tensor:
        """Return x_hat [b, 2, s, h, w]."""


@dataclass(frozen=True)
class BatchCondition:
    """Condition of the b samples of a batch."""

    #: Encoded images and covariates, b rows.
    patient: PatientEncoding
    #: Rows of the arm table, [b].
    arm: Tensor
    #: Lesion load classes [b]; None for a model without them.
    lesion_load: Tensor | None = None
    #: Numbers of lesion voxels that the samples hold [b]; None for a model without a base map.
    voxels: Tensor | None = None


@dataclass(frozen=True)
class UnconditionalInput:
    """Input of the unconditional prediction: the null arm with no images and no covariates."""

    arm: int
    patient: PatientEncoding


@dataclass(frozen=True)
class GuidanceConfig:
    """Settings of guided denoising."""

    #: 0 is unconditional, 1 conditional, more exaggerates the condition.
    guidance: float
    #: Range of logsnr in which guidance applies.
    interval: tuple[float, float]
    #: Weight of lesion voxels in training, whose bias is taken out of NET2.
    lesion_weight: float
    #: Thresholds of the lesion load classes.
    lesion_load_thresholds: tuple[int, ...]


@dataclass(frozen=True)
class GuidedDenoiser:
    """Denoiser of a batch under classifier-free guidance (Ho and Salimans 2022, equation 6).

    All conditions are guided together. The unconditional prediction has the null arm, no images and
    no covariates, but the same lesion load. Outside the interval of logsnr, x_hat is conditional
    (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval").
    """

    predict: Predictor
    condition: BatchCondition
    #: None if guidance is 1, which needs no unconditional prediction.
    unconditional: UnconditionalInput | None
    config: GuidanceConfig
    #: Rows of a forward pass.
    batch_size: int

    def __call__(self, z_t: Tensor, logsnr_t: Tensor) -> Tensor:
        """Return x_hat in [-1, 1], [b, 2, s, h, w], for z_t of that shape and logsnr [b]."""
        samples = len(self.condition.arm)
        rows = torch.arange(samples, device=self.condition.arm.device)
        low, high = self.config.interval
        inside = (low <= logsnr_t) & (logsnr_t <= high)
        guided = rows[inside] if self.unconditional is not None else rows[:0]
        x_hat = self._predict_both(z_t, logsnr_t, rows, guided)
        x_hat, unconditional = x_hat[:samples], x_hat[samples:]
        if len(guided):
            difference = x_hat[guided] - unconditional
            x_hat[guided] = unconditional + self.config.guidance * difference
        x_hat = x_hat.clamp(-1, 1)
        x_hat[:, NET2] = undo_lesion_weight(x_hat[:, NET2], self.config.lesion_weight)
        if self.condition.voxels is not None:
            x_hat[:, NET2] = hold_voxels(x_hat[:, NET2], self.condition.voxels)
        elif self.condition.lesion_load is not None:
            x_hat[:, NET2] = constrain_to_load(
                x_hat[:, NET2], self.condition.lesion_load, self.config.lesion_load_thresholds
            )
        return x_hat

    def _predict_both(self, z_t: Tensor, logsnr_t: Tensor, rows: Tensor, guided: Tensor) -> Tensor:
        """Return x_hat of all samples under their condition, then of `guided` without condition.

        Both kinds share forward passes of `batch_size` rows.
        """
        condition, unconditional = self.condition, self.unconditional
        patients, arms = condition.patient, condition.arm
        patient_rows = rows
        if unconditional is not None:
            # The unconditional input is one more patient, after those of the samples.
            patients = PatientEncoding.cat([patients, unconditional.patient])
            patient_rows = torch.cat([rows, torch.full_like(guided, len(rows))])
            arms = torch.cat([arms, torch.full_like(guided, unconditional.arm)])
        sources = torch.cat([rows, guided])
        loads = None if condition.lesion_load is None else condition.lesion_load[sources]
        voxels = None if condition.voxels is None else condition.voxels[sources]
        predictions = []
        for batch in padded_batches(len(sources), self.batch_size):
            index = torch.tensor(batch, device=z_t.device)
            predictions.append(
                self.predict(
                    z_t[sources[index]],
                    logsnr_t[sources[index]],
                    BatchCondition(
                        patients.index_select(patient_rows[index]),
                        arms[index],
                        None if loads is None else loads[index],
                        None if voxels is None else voxels[index],
                    ),
                )
            )
        return torch.cat(predictions)[: len(sources)]


def padded_batches(number: int, size: int) -> list[list[int]]:
    """Return rows 0 .. number - 1 in batches of `size`; the last row fills up the last batch."""
    return [
        [min(row, number - 1) for row in range(first, first + size)]
        for first in range(0, number, size)
    ]
