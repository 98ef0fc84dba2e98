"""The two networks as one forecaster: condition, arm and seed in, a NET2 mask out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lesioncast.diffusion.continuous_batching import ContinuousBatcher, run_until_idle
from lesioncast.diffusion.controlnet import ControlConfig, ControlNet, PatientEncoding
from lesioncast.diffusion.lesion_load import (
    LoadExpectations,
    constrain_to_load,
    ensure_one_lesion,
    sample_load_class,
)
from lesioncast.diffusion.objective import (
    NET2,
    Denoiser,
    ObjectiveConfig,
    predict_x0,
    undo_lesion_weight,
)
from lesioncast.diffusion.precision import autocast
from lesioncast.diffusion.schedule import ScheduleConfig
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.diffusion.unet import UNet, UNetConfig
from lesioncast.imaging.covariates import Covariate

CPU_BATCH_SIZE = 8  # a third less time a sample than single rows; 16 is no faster
DECIDED_TOLERANCE = 1e-6  # 1 - |x_hat|, so a voxel's probability of the other answer is half of it


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


@dataclass(frozen=True)
class SampleCondition:
    """What the networks are told of a sample: its patient's hint, one row, the arm, and, where they
    know of lesion loads, the one that its seed drew."""

    hint: PatientEncoding
    arm: int
    load: int | None = None


class LesionDiffusion:
    """Stage 2's networks, ready to draw masks."""

    def __init__(self, unet: UNet, control: ControlNet, config: ModelConfig) -> None:
        self.unet = unet.eval()
        self.control = control.eval()
        self.config = config

    def predict(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        hint: PatientEncoding,
        load: Tensor | None = None,
    ) -> Tensor:
        """x_hat [b, 2, s, h, w] given the condition's hint, the arm, and the lesion load."""
        residuals = self.control(z, logsnr, arm, hint, load)
        prediction = self.unet(z, logsnr, arm, residuals, load).float()
        return predict_x0(prediction, z, logsnr, self.config.objective)

    def denoiser(
        self,
        condition: Tensor,
        arm: Tensor,
        *,
        guidance: float,
        interval: tuple[float, float] = (-math.inf, math.inf),
        covariates: Tensor | None = None,
        load: Tensor | None = None,
    ) -> Denoiser:
        """x_hat in [-1, 1] under classifier-free guidance (Ho and Salimans 2022, equation 6).

        All conditions are guided at once: the null arm goes with the null image and without
        covariates, but with the same lesion `load` [b]. Outside the `interval` of logsnr x_hat is
        conditional (Kynkaanniemi et al. 2024, Applying guidance in a limited interval). Last, the
        bias of the lesion weight is taken out of the NET2 channel, which is held to its load.
        """
        hint = self.control.encode(condition, covariates)
        null = self.encode_null(condition) if guidance != 1 else None
        return self._guided(
            hint, arm, load, null, guidance=guidance, interval=interval, size=len(condition)
        )

    def encode_null(self, condition: Tensor) -> PatientEncoding:
        """The hint of no image and no covariates in the shape of `condition`, one row."""
        return self.control.encode(torch.zeros_like(condition[:1]))

    def _guided(
        self,
        hint: PatientEncoding,
        arm: Tensor,
        load: Tensor | None,
        null: PatientEncoding | None,
        *,
        guidance: float,
        interval: tuple[float, float],
        size: int,
    ) -> Denoiser:
        """Both branches of all samples, row after row, in forward passes of `size` rows each."""
        hints = hint if null is None else PatientEncoding.cat([hint, null])
        everyone = torch.arange(len(arm), device=arm.device)

        def denoise(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
            inside = (interval[0] <= logsnr_t) & (logsnr_t <= interval[1])
            guided = everyone[inside] if null is not None else everyone[:0]
            rows = torch.cat([everyone, guided])
            told = torch.cat([everyone, torch.full_like(guided, len(arm))])
            arms = torch.cat([arm, torch.full_like(guided, self.config.unet.null_arm)])
            loads = None if load is None else load[rows]
            x_hat = torch.cat(
                [
                    self.predict(
                        z_t[rows[p]],
                        logsnr_t[rows[p]],
                        arms[p],
                        hints.index_select(told[p]),
                        None if loads is None else loads[p],
                    )
                    for p in (
                        torch.tensor(p, device=z_t.device) for p in padded_batches(len(rows), size)
                    )
                ]
            )[: len(rows)]
            x_hat, unconditional = x_hat[: len(arm)], x_hat[len(arm) :]
            if len(guided):
                x_hat[guided] = unconditional + guidance * (x_hat[guided] - unconditional)
            x_hat = x_hat.clamp(-1, 1)
            x_hat[:, NET2] = undo_lesion_weight(x_hat[:, NET2], self.config.objective.lesion_weight)
            if load is not None:
                x_hat[:, NET2] = constrain_to_load(
                    x_hat[:, NET2], load, self.config.unet.lesion_load_thresholds
                )
            return x_hat

        return denoise

    def engine(
        self,
        sampler: SamplerConfig,
        *,
        spatial_shape: Sequence[int],
        device: torch.device,
        slots: int = CPU_BATCH_SIZE,
    ) -> ContinuousBatcher[SampleCondition]:
        """Slots for samples of spatial shape (s, h, w), in forward passes of `slots` rows.

        Kernels sum in an order that depends on the batch size, and a mask must not: the last row is
        repeated where fewer are there. Nor may it depend on the number of threads, which is its
        caller's to hold. Where x_hat is a probability (prediction log_odds), a sample ends early
        once its NET2 is `settled`: other predictions overshoot, and an x_hat clamped to 1 says
        nothing of how sure it is. A sample whose seed drew no lesions needs no network: its NET2 is
        empty, and its FLAIR black.
        """
        channels, loads = self.config.control.channels, self.config.unet.lesion_load_thresholds
        with torch.no_grad(), autocast(sampler.precision, device):
            empty = torch.zeros(1, channels, *spatial_shape, device=device)
            null = self.encode_null(empty) if sampler.guidance != 1 else None
        shape = (self.config.unet.target_channels, *spatial_shape)

        def denoiser(told: Sequence[SampleCondition]) -> Denoiser:
            guided = self._guided(
                PatientEncoding.cat([each.hint for each in told]),
                torch.tensor([each.arm for each in told], device=device),
                torch.tensor([each.load for each in told], device=device) if loads else None,
                null,
                guidance=sampler.guidance,
                interval=sampler.guidance_interval,
                size=slots,
            )

            def denoise(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
                with autocast(sampler.precision, device):
                    return guided(z_t, logsnr_t)

            return denoise

        return ContinuousBatcher(
            denoiser,
            shape=shape,
            schedule=self.config.schedule,
            sampler=sampler,
            slots=slots,
            device=device,
            settled=is_decided if self.config.objective.prediction == "log_odds" else None,
            known=lambda told: torch.full(shape, -1.0, device=device) if told.load == 0 else None,
            finish=finalise_sample,
        )

    @torch.no_grad()
    def encode_patient(
        self, condition: Tensor, covariates: Tensor | None, sampler: SamplerConfig
    ) -> PatientEncoding:
        """What samples of one patient share: condition [channels, s, h, w], covariates [k]."""
        with autocast(sampler.precision, condition.device):
            return self.control.encode(
                condition[None], None if covariates is None else covariates[None]
            )

    def _hints(
        self, condition: Tensor, covariates: Tensor | None, sampler: SamplerConfig
    ) -> list[PatientEncoding]:
        """One a row; rows of the same patient that follow each other share theirs."""
        given = condition if covariates is None else covariates
        hints: list[PatientEncoding] = []
        for row in range(len(condition)):
            if row and all(_same(each[row], each[row - 1]) for each in (given, condition)):
                hints.append(hints[-1])
            else:
                told = None if covariates is None else covariates[row]
                hints.append(self.encode_patient(condition[row], told, sampler))
        return hints

    @torch.no_grad()
    def sample_conditions(
        self, hint: PatientEncoding, arm: int, seeds: Sequence[int]
    ) -> list[SampleCondition]:
        """What the networks are told of a patient's samples: each seed draws its lesion load."""
        logits = self.load_logits(hint, arm)
        if logits is None:
            return [SampleCondition(hint, arm)] * len(seeds)
        return [SampleCondition(hint, arm, sample_load_class(logits, seed)) for seed in seeds]

    @torch.no_grad()
    def load_logits(self, hint: PatientEncoding, arm: int) -> Tensor | None:
        """Of a patient's lesion load under an arm, [classes]; None for a model without loads."""
        if hint.load is None:
            return None
        assert self.control.load_prior is not None
        logits: Tensor = self.control.load_prior(
            hint.load, torch.tensor([arm], device=hint.load.device)
        )
        return logits[0]

    @torch.no_grad()
    def expected_outcomes(
        self, condition: Tensor, covariates: Tensor | None
    ) -> LoadExpectations | None:
        """What is known of one patient without the luck of a draw, under every arm; None for a
        model without loads.

        condition [channels, s, h, w], covariates [k].
        """
        prior = self.control.load_prior
        if prior is None:
            return None
        burden = self.control.burden_of(condition[None])
        return prior.expected_outcomes(
            prior.patient_features(burden, None if covariates is None else covariates[None])
        )

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        arm: Tensor,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """One x per row: condition [n, channels, s, h, w], arm [n] -> [n, 2, s, h, w].

        `covariates` [n, covariate] are encoded, NaN where absent; None leaves all of them out. On a
        CPU a mask is the same whatever else is drawn; on a GPU all rows share a forward pass, and a
        sample's x differs from that of another batch by rounding.
        """
        slots = CPU_BATCH_SIZE if condition.device.type == "cpu" else len(condition)
        hints = self._hints(condition, covariates, sampler)
        told = [
            each
            for row, hint in enumerate(hints)
            for each in self.sample_conditions(hint, int(arm[row]), seeds[row : row + 1])
        ]
        engine = self.engine(
            sampler, spatial_shape=condition.shape[2:], device=condition.device, slots=slots
        )
        return run_until_idle(engine, told, seeds)

    def sample_masks(
        self,
        condition: Tensor,
        arm: Tensor,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """One NET2 mask per row, bool [n, s, h, w]: lesions are where `draw_x` is positive."""
        return self.sample(condition, arm, seeds, sampler, covariates=covariates)[:, NET2] > 0


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal; absent ones, NaN, equal each other."""
    return bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def finalise_sample(told: SampleCondition, x: Tensor) -> Tensor:
    """The x of a sample that ends, [2, s, h, w], here: one that was to have lesions has some."""
    if told.load:
        x[NET2] = ensure_one_lesion(x[NET2])
    return x


def is_decided(x_hat: Tensor) -> Tensor:
    """Whether every NET2 voxel of x_hat [n, 2, s, h, w] is decided, bool [n].

    Later evaluations have more evidence for the same, so they cannot turn the mask.
    """
    return (x_hat[:, NET2].abs() > 1 - DECIDED_TOLERANCE).flatten(1).all(1)


def padded_batches(number: int, size: int) -> list[list[int]]:
    """Rows 0 .. number - 1 in batches of `size`, the last row repeated to fill the last batch."""
    return [
        [min(row, number - 1) for row in range(first, first + size)]
        for first in range(0, number, size)
    ]
