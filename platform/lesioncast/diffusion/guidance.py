"""Classifier-free guidance: combine the conditional and the unconditional prediction."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.diffusion.lesion_load import constrain_to_load
from lesioncast.diffusion.objective import NET2, undo_lesion_weight
from lesioncast.diffusion.spatial.base_map import base_log_odds, hold_voxels


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

    @cached_property
    def base_log_odds(self) -> Tensor | None:
        """Base log odds [b, s, h, w], the same at every step; None without voxels or density."""
        if self.patient.log_density is None or self.voxels is None:
            return None
        return base_log_odds(self.patient.log_density, self.voxels)


class ForwardPass(NamedTuple):
    """Rows of z_t [rows] that share a forward pass, and their conditions."""

    rows: Tensor
    condition: BatchCondition


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
        guided = self._guided(logsnr_t)
        passes = self._passes(guided) if len(guided) else self._conditional_passes
        x_hat = torch.cat(
            [self.predict(z_t[rows], logsnr_t[rows], condition) for rows, condition in passes]
        )
        x_hat, unconditional = x_hat[:samples], x_hat[samples : samples + len(guided)]
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

    def _guided(self, logsnr_t: Tensor) -> Tensor:
        """Return the rows that guidance applies to at logsnr [b]."""
        if self.unconditional is None:
            return self._rows[:0]
        low, high = self.config.interval
        return self._rows[(low <= logsnr_t) & (logsnr_t <= high)]

    @cached_property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.condition.arm), device=self.condition.arm.device)

    @cached_property
    def _conditional_passes(self) -> list[ForwardPass]:
        # Kept, because every step would copy the patients' volumes again.
        return self._passes(self._rows[:0])

    def _passes(self, guided: Tensor) -> list[ForwardPass]:
        """Return the passes of all samples under their condition, then of `guided` without.

        Both kinds share forward passes of `batch_size` rows.
        """
        condition, unconditional, rows = self.condition, self.unconditional, self._rows
        patients, arms, patient_rows = condition.patient, condition.arm, rows
        if unconditional is not None:
            # The unconditional input is one more patient, after those of the samples.
            patients = PatientEncoding.cat([patients, unconditional.patient])
            patient_rows = torch.cat([rows, torch.full_like(guided, len(rows))])
            arms = torch.cat([arms, torch.full_like(guided, unconditional.arm)])
        sources = torch.cat([rows, guided])
        loads = None if condition.lesion_load is None else condition.lesion_load[sources]
        voxels = None if condition.voxels is None else condition.voxels[sources]
        passes = []
        for batch in padded_batches(len(sources), self.batch_size):
            index = torch.tensor(batch, device=rows.device)
            passes.append(
                ForwardPass(
                    sources[index],
                    BatchCondition(
                        patients.index_select(patient_rows[index]),
                        arms[index],
                        None if loads is None else loads[index],
                        None if voxels is None else voxels[index],
                    ),
                )
            )
        return passes


def padded_batches(number: int, size: int) -> list[list[int]]:
    """Return rows 0 .. number - 1 in batches of `size`; the last row fills up the last batch."""
    return [
        [min(row, number - 1) for row in range(first, first + size)]
        for first in range(0, number, size)
    ]
