"""Fit the prior of the lesion load to all training cases at once.

The prior reads a few numbers per patient, so that a step can hold many more cases than images would
allow. Cases lose parts of their condition at the dropout rates of stage 2, since a forecast may
lack them too.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lesioncast.diffusion.controlnet import lesion_burden
from lesioncast.diffusion.lesion_load import (
    BASELINE_ALONE,
    LATER_TOO,
    NO_IMAGE,
    LesionLoadPrior,
    lesion_load_class,
    shift_to_sum,
)
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.objective import NET2
from lesioncast.imaging.channels import TARGET_CHANNELS, encode_case, parse_channels
from lesioncast.imaging.covariates import encode_covariates
from lesioncast.imaging.lesions import components
from lesioncast.training import randomness
from lesioncast.training.rng import RngStream, rng_for
from lesioncast.training.settings import DropoutRates
from lesioncast.training.state import cosine_decay
from storage import Case, Store

STEPS, ROWS, LEARNING_RATE = 1000, 1024, 3e-3
WEIGHT_DECAY = 500.0  # divided by the number of cases, like a Gaussian prior on the weights


@dataclass(frozen=True)
class PriorTrainingData:
    """Conditions and lesion loads of n cases."""

    #: Lesion burden of the images, [n, channel, 3].
    burden: Tensor
    #: Encoded covariates, NaN if missing, [n, covariate].
    covariates: Tensor
    #: Row of the arm received, [n].
    arm: Tensor
    #: Lesion load class at outcome, [n].
    lesion_load: Tensor
    #: Number of lesions at outcome, [n].
    lesions: Tensor


def load_prior_data(cases: Sequence[Case], store: Store, model: ModelConfig) -> PriorTrainingData:
    """Read what the lesion load prior is fitted to."""
    condition_channels = parse_channels(model.control.condition)
    unet = model.unet

    def read(case: Case) -> PriorTrainingData:
        arrays = store.read(case.index)
        condition, x = (
            torch.from_numpy(encode_case(arrays, channels=channels))[None]
            for channels in (condition_channels, TARGET_CHANNELS)
        )
        lesions = components(x[0, NET2].numpy() > 0)[1]
        return PriorTrainingData(
            burden=lesion_burden(condition, model.control.masks),
            covariates=torch.from_numpy(encode_covariates(model.covariates, case))[None],
            arm=torch.tensor([unet.null_arm if case.arm_index < 0 else case.arm_index]),
            lesion_load=lesion_load_class(x[:, NET2], unet.lesion_load_thresholds),
            lesions=torch.tensor([lesions], dtype=torch.float32),
        )

    with ThreadPoolExecutor() as threads:
        rows = list(threads.map(read, cases))
    columns = ([getattr(row, field.name) for row in rows] for field in fields(PriorTrainingData))
    return PriorTrainingData(*map(torch.cat, columns))


def fit_lesion_load_prior(
    prior: LesionLoadPrior,
    data: PriorTrainingData,
    rates: DropoutRates,
    *,
    seed: int,
    post_baseline: npt.NDArray[np.bool_],
    rows: int = ROWS,
) -> float:
    """Fit the prior by cross entropy; return its mean over the last tenth of the steps, in nats.

    Each step takes `rows` cases. They lose arm, channels and covariates at `rates`, those of stage
    2. `post_baseline` [channel] marks the channels after baseline.
    """
    weights = [parameter.requires_grad_() for parameter in prior.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=WEIGHT_DECAY / len(data.arm))
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = cosine_decay(step, start=LEARNING_RATE, steps=STEPS)
        batch = sample_rows(data, rows_of_step(seed, step, size=rows, cases=len(data.arm)))
        dropout = randomness.condition_dropout(
            seed,
            step,
            batch_size=rows,
            post_baseline=post_baseline,
            rates=rates,
            covariates=data.covariates.shape[1],
        )
        batch = drop_conditions(batch, dropout, null_arm=prior.arms - 1)
        logits = prior(prior.patient_features(batch.burden, batch.covariates), batch.arm)
        loss = functional.cross_entropy(logits, batch.lesion_load)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    for buffer, values in (
        (prior.lesions, data.lesions),
        (prior.log_lesions, data.lesions.log1p()),
    ):
        buffer.copy_(class_means(values, data.lesion_load, classes=len(buffer)))
    calibrate_arms(prior, data, post_baseline=post_baseline)
    return float(torch.stack(losses[-STEPS // 10 :]).mean())


@torch.no_grad()
def calibrate_arms(
    prior: LesionLoadPrior, data: PriorTrainingData, *, post_baseline: npt.NDArray[np.bool_]
) -> None:
    """Set the offset of each arm so that its mean P(active) is the observed share.

    The mean is over the training cases who received the arm, with all their images, with those of
    baseline alone, and without images. The null arm has the cases of all arms. An arm without cases
    keeps the offset 0. Where all or none of an arm's cases are active, half a case is taken from
    the share or added to it, since no offset gives 0 or 1. Calibration in the large: Steyerberg
    2019, section 15.3.
    """
    later = torch.from_numpy(post_baseline).to(data.burden.device)
    hidden = {
        NO_IMAGE: torch.ones_like(later),
        BASELINE_ALONE: later,
        LATER_TOO: torch.zeros_like(later),
    }
    # The first features are the burden, [channel, 3], of which a missing channel has zeros.
    of_channel = BASELINE_ALONE + (LATER_TOO - BASELINE_ALONE) * later.long()
    prior.image_pattern.zero_()
    prior.image_pattern[: data.burden[0].numel()] = of_channel.repeat_interleave(
        data.burden.shape[2]
    )
    prior.arm_offset.zero_()
    active = data.lesion_load > 0
    for pattern, channels in hidden.items():
        burden = data.burden.masked_fill(channels[:, None], 0)
        patient = prior.patient_features(burden, data.covariates)
        of_pattern = prior.pattern(patient) == pattern
        for arm in range(prior.arms):
            rows = of_pattern & ((data.arm == arm) | (arm == prior.arms - 1))
            if rows.any():
                offset = offset_to_share(prior, patient[rows], arm, active[rows])
                prior.arm_offset[pattern, arm] = offset


def offset_to_share(prior: LesionLoadPrior, patient: Tensor, arm: int, active: Tensor) -> float:
    """Return what to add to the log odds under `arm` so that they give the share of `active` [n].

    `patient` [n, feature] are the features of the same cases.
    """
    cases = len(active)
    logits = prior(patient, torch.full((cases,), arm, device=patient.device)).double()
    log_odds = logits[:, 1:].logsumexp(1) - logits[:, 0]
    return shift_to_sum(log_odds, active.double().sum().clamp(0.5, cases - 0.5))


def class_means(values: Tensor, lesion_load: Tensor, *, classes: int) -> Tensor:
    """Return the mean of `values` [n] of each lesion load class, [class].

    A class without cases takes the mean of the class below.
    """
    means = torch.zeros(classes)
    for index in range(classes):
        of_class = values[lesion_load == index]
        means[index] = of_class.mean() if len(of_class) else means[max(index - 1, 0)]
    return means


def rows_of_step(seed: int, step: int, *, size: int, cases: int) -> Tensor:
    """Draw the rows of a step with replacement, [size]."""
    return torch.from_numpy(rng_for(RngStream.LESION_LOAD, seed, step).integers(cases, size=size))


def sample_rows(data: PriorTrainingData, rows: Tensor) -> PriorTrainingData:
    """Return the cases at `rows`, in that order."""
    rows = rows.to(data.arm.device)
    return PriorTrainingData(
        burden=data.burden[rows],
        covariates=data.covariates[rows],
        arm=data.arm[rows],
        lesion_load=data.lesion_load[rows],
        lesions=data.lesions[rows],
    )


def drop_conditions(
    data: PriorTrainingData, dropout: randomness.ConditionDropout, *, null_arm: int
) -> PriorTrainingData:
    """Return the cases without what they lose: channels become 0, covariates NaN, the arm null."""
    no_channel, no_covariate, no_arm = (
        torch.from_numpy(lost).to(data.arm.device)
        for lost in (dropout.channels, dropout.covariates, dropout.arm)
    )
    return replace(
        data,
        burden=data.burden.masked_fill(no_channel[:, :, None], 0),
        covariates=data.covariates.masked_fill(no_covariate, torch.nan),
        arm=data.arm.masked_fill(no_arm, null_arm),
    )
