"""The prior of the lesion load, fitted to all training cases at once.

It reads a few numbers of each patient, so that many more rows go into a step than images would
allow; what a case may lack when it is forecast, rows lack at the rates of stage 2.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lesioncast.diffusion.controlnet import lesion_burden
from lesioncast.diffusion.lesion_load import LesionLoadPrior, lesion_load_class
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.objective import NET2
from lesioncast.imaging.channels import TARGET_CHANNELS, encode_case, parse_channels
from lesioncast.imaging.covariates import encode_covariates
from lesioncast.imaging.lesions import components
from lesioncast.training import randomness
from lesioncast.training.data.order import RngStream, rng_for
from lesioncast.training.settings import TrainSettings
from lesioncast.training.state import learning_rate
from storage import Case, Store

STEPS, ROWS, LEARNING_RATE = 1000, 1024, 3e-3
WEIGHT_DECAY = 500.0  # divided by the cases, as a Gaussian prior of the weights would be


@dataclass(frozen=True)
class PriorTrainingData:
    """What is known of n training cases: the `burden` of their images [n, channel, 3], encoded
    `covariates` [n, covariate], NaN where absent, the row `arm` [n] of the arm received, and the
    `lesions` [n] that they had, with the class of their `load` [n]."""

    burden: Tensor
    covariates: Tensor
    arm: Tensor
    load: Tensor
    lesions: Tensor


def load_prior_data(cases: Sequence[Case], store: Store, model: ModelConfig) -> PriorTrainingData:
    """What the prior of the lesion load is fitted to."""
    channels = parse_channels(model.control.condition)

    def read(case: Case) -> tuple[Tensor, Tensor, int]:
        arrays = store.read(case.index)
        condition, x = (encode_case(arrays, channels=each) for each in (channels, TARGET_CHANNELS))
        burden = lesion_burden(torch.from_numpy(condition)[None], model.control.masks)
        load = lesion_load_class(torch.from_numpy(x)[None, NET2], model.unet.lesion_load_thresholds)
        return burden, load, components(x[NET2] > 0)[1]

    with ThreadPoolExecutor() as threads:
        burden, load, lesions = zip(*threads.map(read, cases), strict=True)
    arm = torch.tensor([model.unet.null_arm if c.arm_index < 0 else c.arm_index for c in cases])
    covariates = np.stack([encode_covariates(model.covariates, case) for case in cases])
    return PriorTrainingData(
        torch.cat(burden),
        torch.from_numpy(covariates),
        arm,
        torch.cat(load),
        torch.tensor(lesions, dtype=torch.float32),
    )


def fit_load_prior(
    prior: LesionLoadPrior,
    patients: PriorTrainingData,
    settings: TrainSettings,
    *,
    seed: int,
    later: npt.NDArray[np.bool_],
    rows: int = ROWS,
) -> float:
    """Fits the prior by cross entropy; returns that of the last tenth of the steps, in nats.

    `rows` go into each of the steps. They lose arm, channels, those `later` than w000 [channel],
    and covariates at the rates of `settings`, those of stage 2.
    """
    fitting = replace(settings, steps=STEPS, batch_size=rows, learning_rate=LEARNING_RATE, warmup=0)
    weights = [each.requires_grad_() for each in prior.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=WEIGHT_DECAY / len(patients.arm))
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, fitting)
        burden, covariates, arm, load = sample_rows(
            patients, step, fitting, seed=seed, null_arm=prior.arms - 1, later=later
        )
        loss = functional.cross_entropy(
            prior(prior.patient_features(burden, covariates), arm), load
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    for mean, values in (
        (prior.lesions, patients.lesions),
        (prior.log_lesions, patients.lesions.log1p()),
    ):
        mean.copy_(class_means(values, patients.load, classes=len(mean)))
    return float(torch.stack(losses[-STEPS // 10 :]).mean())


def class_means(values: Tensor, load: Tensor, *, classes: int) -> Tensor:
    """Means of `values` [n] by class of load [n], [class]; that of the class below where a class
    has no case."""
    means = torch.zeros(classes)
    for each in range(classes):
        of_class = values[load == each]
        means[each] = of_class.mean() if len(of_class) else means[max(each - 1, 0)]
    return means


def sample_rows(
    patients: PriorTrainingData,
    step: int,
    settings: TrainSettings,
    *,
    seed: int,
    null_arm: int,
    later: npt.NDArray[np.bool_],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Burden, covariates, arm and load of the rows of a step, drawn with replacement, without what
    they lose."""
    size = settings.batch_size
    rows = torch.from_numpy(
        rng_for(RngStream.LOAD, seed, step).integers(len(patients.arm), size=size)
    ).to(patients.arm.device)
    drops = randomness.condition_dropout(
        seed,
        step,
        batch_size=size,
        channels=patients.burden.shape[1],
        covariates=patients.covariates.shape[1],
        later=later,
        **settings.dropout_rates,
    )
    no_channel, no_covariate, no_arm = (
        torch.from_numpy(lost).to(rows.device)
        for lost in (drops.channels, drops.covariates, drops.arm)
    )
    return (
        patients.burden[rows].masked_fill(no_channel[:, :, None], 0),
        patients.covariates[rows].masked_fill(no_covariate, torch.nan),
        patients.arm[rows].masked_fill(no_arm, null_arm),
        patients.load[rows],
    )
