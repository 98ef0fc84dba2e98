"""Both networks as one model: from a patient's condition, an arm and a seed to a NET2 mask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lesioncast.diffusion.continuous_batching import (
    ContinuousBatcher,
    ReverseProcess,
    run_until_idle,
)
from lesioncast.diffusion.controlnet import ControlNet, PatientEncoding, prior_features
from lesioncast.diffusion.guidance import (
    BatchCondition,
    GuidanceConfig,
    GuidedDenoiser,
    UnconditionalInput,
)
from lesioncast.diffusion.lesion_load import (
    LesionLoadPrior,
    LoadExpectations,
    ensure_one_lesion,
    sample_load_class,
)
from lesioncast.diffusion.objective import FLAIR, NET2, Denoiser, predict_x0, redraw_seed
from lesioncast.diffusion.precision import autocast
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import NUM_TARGETS
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig
from lesioncast.diffusion.spatial.base_map import BaseMap, base_log_odds
from lesioncast.diffusion.unet import UNet

CPU_BATCH_SIZE = 8  # takes a third less time per sample than single rows; 16 is no faster


@dataclass(frozen=True)
class SampleCondition:
    """Condition of one sample."""

    #: Encoded images and covariates of the patient, one row.
    patient: PatientEncoding
    #: Row of the arm table.
    arm: int
    #: Lesion load class that the sample's seed drew; None for a model without lesion loads.
    lesion_load: int | None = None
    #: Number of lesion voxels that the sample's seed drew; None for a model without a base map.
    voxels: float | None = None


class LesionDiffusion:
    """Trained networks of stage 2, which sample masks.

    `odds_ratio` says how many times too high the odds of activity are in what the networks
    learned: n_inactive / n_active after a balanced stage 2, else 1. Samples are drawn without that
    bias. `base_map` is given for networks that refine one.
    """

    def __init__(
        self,
        unet: UNet,
        control: ControlNet,
        config: ModelConfig,
        *,
        odds_ratio: float = 1.0,
        base_map: BaseMap | None = None,
    ) -> None:
        self.unet = unet.eval()
        self.control = control.eval()
        self.config = config
        self.odds_ratio = odds_ratio
        self.base_map = base_map
        if config.unet.base_map != (base_map is not None):
            raise ValueError(
                f"base_map: expected one if unet.base_map is set ({config.unet.base_map}), got "
                f"{base_map and 'one'}; load networks and base map from one bundle"
            )

    def predict(
        self,
        z: Tensor,
        logsnr: Tensor,
        condition: BatchCondition,
        *,
        autoguidance: Sequence[float] = (),
    ) -> Tensor:
        """Return x_hat [b, 2, s, h, w] for z of that shape, logsnr [b] and b rows of a condition.

        `autoguidance` is that of the sampler. Without a number of lesion voxels in the condition, a
        base map is scaled to the mean of the lesion load class.
        """
        arm, lesion_load = condition.arm, condition.lesion_load
        residuals = self.control(z, logsnr, arm, condition.patient, lesion_load)
        if condition.voxels is None and self.base_map is not None and lesion_load is not None:
            condition = replace(condition, voxels=self.base_map.mean_voxels(lesion_load))
        base = condition.base_log_odds
        offset = None if base is None else base - self.config.objective.base_log_odds
        prediction = self.unet(z, logsnr, arm, residuals, lesion_load, offset).float()
        if set(autoguidance) - {1.0} and offset is not None and lesion_load is not None:
            factors = prediction.new_tensor(autoguidance)
            # Class 0 passes through no network, but may fill up a batch.
            factor = factors[(lesion_load.clamp(min=1) - 1) % len(factors)]
            prediction = guide_by_base(prediction, offset, factor)
        return predict_x0(prediction, z, logsnr, self.config.objective)

    def denoiser(
        self,
        condition: Tensor,
        arm: Tensor,
        *,
        guidance: float,
        interval: tuple[float, float] = (-math.inf, math.inf),
        covariates: Tensor | None = None,
        lesion_load: Tensor | None = None,
    ) -> Denoiser:
        """Return the guided denoiser of a batch; see `GuidedDenoiser`.

        condition [b, channels, s, h, w], arm [b], covariates [b, covariate], lesion_load [b]. A
        base map is that of the atlas.
        """
        patient = self._encode(condition, covariates)
        batch = BatchCondition(patient, arm, lesion_load)
        config = self._guidance_config(guidance, interval)
        return self._guided(batch, config, like=condition[:1])

    def encoded_denoiser(
        self, batch: BatchCondition, sampler: SamplerConfig, *, spatial_shape: Sequence[int]
    ) -> Denoiser:
        """Return the denoiser of encoded patients that maps are computed with.

        It has the sampler's guidance and map weight. `spatial_shape` is (s, h, w).
        """
        like = batch.patient.features.new_zeros(1, self.config.control.channels, *spatial_shape)
        config = self._guidance_config(sampler.guidance, sampler.guidance_interval)
        predict = partial(self.predict, autoguidance=(sampler.map_weight,))
        return replace(self._guided(batch, config, like=like), predict=predict)

    def _guided(
        self, batch: BatchCondition, config: GuidanceConfig, *, like: Tensor
    ) -> GuidedDenoiser:
        """Return the guided denoiser of images in the shape of `like` [1, channels, s, h, w]."""
        unconditional = self._unconditional(like) if config.guidance != 1 else None
        return GuidedDenoiser(self.predict, batch, unconditional, config, len(batch.arm))

    def _unconditional(self, like: Tensor) -> UnconditionalInput:
        """Return the null condition, with images in the shape of `like` [1, channels, s, h, w]."""
        patient = self._encode(torch.zeros_like(like), None)
        return UnconditionalInput(self.config.unet.null_arm, patient)

    def _autoguidance(self, sampler: SamplerConfig) -> tuple[float, ...]:
        """Return the factors of the sampler, none for networks without a base map.

        Raise ValueError if there are not as many as lesion load classes with lesions, or one.
        """
        if self.base_map is None:
            return ()
        factors, classes = sampler.autoguidance, len(self.config.unet.lesion_load_thresholds)
        if len(factors) not in {0, 1, classes}:
            raise ValueError(
                f"sampler.autoguidance: expected one factor, or {classes}, one for each lesion "
                f"load class with lesions, got {list(factors)}"
            )
        return factors

    def _guidance_config(self, guidance: float, interval: tuple[float, float]) -> GuidanceConfig:
        return GuidanceConfig(
            guidance=guidance,
            interval=interval,
            lesion_weight=self.config.objective.lesion_weight,
            lesion_load_thresholds=self.config.unet.lesion_load_thresholds,
        )

    def batcher(
        self,
        sampler: SamplerConfig,
        *,
        spatial_shape: Sequence[int],
        device: torch.device,
        slots: int = CPU_BATCH_SIZE,
    ) -> ContinuousBatcher[SampleCondition]:
        """Return a batcher for samples of spatial shape (s, h, w), with `slots` rows per pass.

        The caller fixes the number of CPU threads, since a mask may not depend on it.
        """
        process = self.reverse_process(
            sampler, spatial_shape=spatial_shape, device=device, slots=slots
        )
        return ContinuousBatcher(process, slots=slots)

    def reverse_process(
        self,
        sampler: SamplerConfig,
        *,
        spatial_shape: Sequence[int],
        device: torch.device,
        slots: int,
    ) -> ReverseProcess[SampleCondition]:
        """Return the reverse process of samples of spatial shape (s, h, w), `slots` rows per pass.

        A sample with lesion load class 0 needs no network: its NET2 is empty, and its FLAIR is -1.
        """
        # Kernels sum in an order that depends on the batch size. Every pass therefore has `slots`
        # rows, the last of which is repeated if there are fewer samples.
        channels = self.config.control.channels
        lesion_loads = bool(self.config.unet.lesion_load_thresholds)
        shape = (NUM_TARGETS, *spatial_shape)
        config = self._guidance_config(sampler.guidance, sampler.guidance_interval)
        predict = partial(self.predict, autoguidance=self._autoguidance(sampler))
        unconditional = None
        if sampler.guidance != 1:
            with torch.no_grad(), autocast(sampler.precision, device):
                no_images = torch.zeros(1, channels, *spatial_shape, device=device)
                unconditional = self._unconditional(no_images)

        def make_denoiser(conditions: Sequence[SampleCondition]) -> Denoiser:
            loads = [condition.lesion_load for condition in conditions]
            voxels = [condition.voxels for condition in conditions]
            batch = BatchCondition(
                PatientEncoding.cat([condition.patient for condition in conditions]),
                torch.tensor([condition.arm for condition in conditions], device=device),
                torch.tensor(loads, device=device) if lesion_loads else None,
                torch.tensor(voxels, device=device) if self.base_map else None,
            )
            guided = GuidedDenoiser(predict, batch, unconditional, config, slots)

            def denoise(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
                with autocast(sampler.precision, device):
                    return guided(z_t, logsnr_t)

            return denoise

        def known_sample(condition: SampleCondition) -> Tensor | None:
            return torch.full(shape, -1.0, device=device) if condition.lesion_load == 0 else None

        # Only prediction log_odds gives a probability. Other predictions overshoot, and an x_hat
        # that was clamped to 1 says nothing of its certainty.
        certain = self.config.objective.prediction == "log_odds"
        return ReverseProcess(
            make_denoiser,
            shape=shape,
            schedule=self.config.schedule,
            sampler=sampler,
            device=device,
            is_decided=partial(is_decided, undecided_voxels=sampler.undecided_voxels)
            if certain
            else None,
            known_sample=known_sample,
            finalise=finalise_sample,
            redraw_seed=partial(redraw_seed, odds_ratio=self.odds_ratio),
        )

    @torch.no_grad()
    def encode_patient(
        self,
        condition: Tensor,
        covariates: Tensor | None,
        sampler: SamplerConfig,
        log_density: Tensor | None = None,
    ) -> PatientEncoding:
        """Encode one patient, in the sampler's precision, for all of the patient's samples.

        condition [channels, s, h, w], covariates [covariate], NaN if missing. `log_density`
        [s, h, w] is the patient's for a model with a base map; None stands for the atlas.
        """
        values = None if covariates is None else covariates[None]
        with autocast(sampler.precision, condition.device):
            return self._encode(condition[None], values, log_density)

    def _encode(
        self, condition: Tensor, covariates: Tensor | None, log_density: Tensor | None = None
    ) -> PatientEncoding:
        """Encode patients [b, channels, s, h, w], with covariates [b, covariate].

        A model with a base map takes a log density [s, h, w], or the atlas.
        """
        patient = self.control.read_voxels(self.control.encode(condition, covariates))
        if self.base_map is None:
            return patient
        density = self.base_map.atlas if log_density is None else log_density
        return replace(patient, log_density=density.expand(len(condition), *density.shape))

    def _encode_rows(
        self, condition: Tensor, covariates: Tensor | None, sampler: SamplerConfig
    ) -> list[PatientEncoding]:
        """Encode every row. Consecutive rows of the same patient share one encoding."""
        encodings: list[PatientEncoding] = []
        for row, images in enumerate(condition):
            values = None if covariates is None else covariates[row]
            same = row > 0 and _equal(images, condition[row - 1])
            if same and (covariates is None or _equal(covariates[row], covariates[row - 1])):
                encodings.append(encodings[-1])
            else:
                encodings.append(self.encode_patient(images, values, sampler))
        return encodings

    @torch.no_grad()
    def sample_conditions(
        self, patient: PatientEncoding, arm: int, seeds: Sequence[int]
    ) -> list[SampleCondition]:
        """Return the condition of one sample per seed; each seed draws its lesion load class."""
        logits = self.lesion_load_logits(patient, arm)
        return [self.sample_condition(patient, arm, logits, seed) for seed in seeds]

    def sample_condition(
        self, patient: PatientEncoding, arm: int, logits: Tensor | None, seed: int
    ) -> SampleCondition:
        """Return the condition of a seed's sample, whose lesion load has `logits` [class].

        They are None for a model without lesion loads. The seed draws the class and, within it, the
        number of lesion voxels.
        """
        condition = SampleCondition(patient, arm)
        if logits is None:
            return condition
        load = sample_load_class(logits, seed)
        if self.base_map is None:
            return replace(condition, lesion_load=load)
        voxels = self.base_map.sample_voxels(logits, seed, load)
        return replace(condition, lesion_load=load, voxels=voxels)

    @torch.no_grad()
    def lesion_load_logits(self, patient: PatientEncoding, arm: int) -> Tensor | None:
        """Return the logits of the lesion load classes of a patient under an arm, [classes].

        Return None for a model without lesion loads.
        """
        if patient.lesion_load is None:
            return None
        assert self.control.lesion_load_prior is not None
        logits: Tensor = self.control.lesion_load_prior(
            patient.lesion_load, torch.tensor([arm], device=patient.lesion_load.device)
        )
        return logits[0]

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
        """Sample one x per row: condition [n, channels, s, h, w], arm [n] -> [n, 2, s, h, w].

        `covariates` [n, covariate] are encoded values, NaN if missing. None means that all are
        missing. On a CPU a sample does not depend on the other rows. On a GPU all rows share a
        forward pass, and a sample differs by rounding from the same sample in another batch.
        """
        return self.sample_encoded(
            self._encode_rows(condition, covariates, sampler),
            arm.tolist(),
            seeds,
            sampler,
            spatial_shape=condition.shape[2:],
        )

    @torch.no_grad()
    def sample_encoded(
        self,
        patients: Sequence[PatientEncoding],
        arms: Sequence[int],
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        spatial_shape: Sequence[int],
    ) -> Tensor:
        """Sample one x for each encoded patient, arm and seed, n of each -> [n, 2, s, h, w]."""
        conditions = [
            condition
            for row, patient in enumerate(patients)
            for condition in self.sample_conditions(patient, arms[row], seeds[row : row + 1])
        ]
        return self.sample_under(conditions, seeds, sampler, spatial_shape=spatial_shape)

    @torch.no_grad()
    def sample_under(
        self,
        conditions: Sequence[SampleCondition],
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        spatial_shape: Sequence[int],
    ) -> Tensor:
        """Sample one x for each condition and seed, n of each -> [n, 2, s, h, w]."""
        device = conditions[0].patient.features.device
        slots = CPU_BATCH_SIZE if device.type == "cpu" else len(conditions)
        batcher = self.batcher(sampler, spatial_shape=spatial_shape, device=device, slots=slots)
        return run_until_idle(batcher, conditions, seeds)

    def sample_masks(
        self,
        condition: Tensor,
        arm: Tensor,
        seeds: Sequence[int],
        sampler: SamplerConfig,
        *,
        covariates: Tensor | None = None,
    ) -> Tensor:
        """Sample one NET2 mask per row, bool [n, s, h, w]; see `sample` for the arguments.

        A voxel is a lesion if its x is positive.
        """
        return self.sample(condition, arm, seeds, sampler, covariates=covariates)[:, NET2] > 0


def net2_offset(
    log_density: Tensor | None, voxels: Tensor | None, objective: ObjectiveConfig
) -> Tensor | None:
    """Return what networks that refine a base map add to NET2's log odds, [b, s, h, w].

    It puts the base log odds of a log density [b, s, h, w] and lesion voxels [b] in the place of
    the objective's constant. Return None for a model without a base map, which has no densities.
    """
    if log_density is None or voxels is None:
        return None
    return base_log_odds(log_density, voxels) - objective.base_log_odds


def guide_by_base(prediction: Tensor, offset: Tensor, factor: Tensor) -> Tensor:
    """Return predictions [b, 2, s, h, w] with NET2's distance from the base map multiplied.

    The base map, whose log odds are `offset` [b, s, h, w], is the prediction of a weaker model: it
    knows where lesions are likely, and not that they are coherent. The networks' log odds are moved
    away from it by `factor` [b] (Karras et al. 2024, "Guiding a diffusion model with a bad version
    of itself", equation 3).
    """
    net2 = offset + factor[:, None, None, None] * (prediction[:, NET2] - offset)
    return torch.stack([prediction[:, FLAIR], net2], dim=1)


@torch.no_grad()
def expected_outcomes(
    prior: LesionLoadPrior, masks: Sequence[int], condition: Tensor, covariates: Tensor | None
) -> LoadExpectations:
    """Return the expected outcomes of one patient under every arm, without sampling.

    condition [channels, s, h, w], of which the channels `masks` are masks; covariates [covariate].
    No weight but the prior's is needed.
    """
    values = None if covariates is None else covariates[None]
    return prior.expected_outcomes(prior_features(prior, masks, condition[None], values))


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return True if all values are equal. Missing values, NaN, equal each other."""
    return bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def finalise_sample(condition: SampleCondition, x: Tensor) -> Tensor:
    """Make sure that a finished x [2, s, h, w] has a lesion if its lesion load class has, in place.

    If no voxel is positive, the most likely voxel becomes a lesion.
    """
    if condition.lesion_load:
        x[NET2] = ensure_one_lesion(x[NET2])
    return x


def is_decided(x_hat: Tensor, *, undecided_voxels: float) -> Tensor:
    """Return, per sample of x_hat [n, 2, s, h, w], True if its mask will hardly change, bool [n].

    A voxel whose lesion has the probability p given z_t ends in the less likely class with the
    probability min(p, 1 - p). Their sum is the expected number of voxels that change.
    """
    minority = (1 - x_hat[:, NET2].abs()) / 2
    return minority.flatten(1).sum(1) < undecided_voxels
