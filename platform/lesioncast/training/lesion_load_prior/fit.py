"""Fit the prior of the lesion load to all training cases at once.

The prior reads a few numbers per patient, so that a step can hold many more cases than images would
allow. Cases lose parts of their condition, since a forecast may lack them too.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.priors.input_patterns import PATTERNS
from lesioncast.training.lesion_load_prior.calibration import calibrate_arms, features_of_pattern
from lesioncast.training.lesion_load_prior.data import PriorTrainingData
from lesioncast.training.lesion_load_prior.dropout import PriorDropout, drop_inputs
from lesioncast.training.rng import RngStream, rng_for
from lesioncast.training.state import cosine_decay

STEPS, ROWS, LEARNING_RATE = 1000, 1024, 3e-3
WEIGHT_DECAY = 500.0  # divided by the number of cases, like a Gaussian prior on the weights


def fit_lesion_load_prior(
    prior: LesionLoadPrior,
    data: PriorTrainingData,
    dropout: PriorDropout,
    *,
    seed: int,
    rows: int = ROWS,
) -> float:
    """Fit the prior by cross entropy; return its mean over the last tenth of the steps, in nats.

    Each step takes `rows` cases, which lose parts of their input by `dropout`. The reader of FLAIR
    is fitted before and stays as it is.
    """
    layers = (prior.hidden, prior.steps)
    weights = [weight.requires_grad_() for layer in layers for weight in layer.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=WEIGHT_DECAY / len(data.arm))
    prior.constrain()
    set_ranges(prior, data)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = cosine_decay(step, start=LEARNING_RATE, steps=STEPS)
        batch = drop_inputs(
            data.rows(rows_of_step(seed, step, size=rows, cases=len(data.arm))),
            dropout,
            prior.channels,
            seed=seed,
            step=step,
            null_arm=prior.arms - 1,
        )
        logits = prior(batch.patient_features(prior), batch.arm)
        loss = functional.cross_entropy(logits, batch.lesion_load)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        prior.constrain()
        losses.append(loss.detach())
    for buffer, values in (
        (prior.lesions, data.lesions),
        (prior.log_lesions, data.lesions.log1p()),
    ):
        buffer.copy_(class_means(values, data.lesion_load, classes=len(buffer)))
    calibrate_arms(prior, data)
    return float(torch.stack(losses[-STEPS // 10 :]).mean())


@torch.no_grad()
def set_ranges(prior: LesionLoadPrior, data: PriorTrainingData) -> None:
    """Set the range of each feature to that of the cases that have it.

    The features are those from each pattern of images, since the reader reads a session otherwise
    beside another one, and not where there is a mask. A feature that no case has gets the range 0
    to 0.
    """
    patient = torch.cat([features_of_pattern(prior, data, pattern) for pattern in range(PATTERNS)])
    missing, largest = patient == 0, torch.finfo(patient.dtype).max
    lowest = patient.masked_fill(missing, largest).amin(0)
    highest = patient.masked_fill(missing, -largest).amax(0)
    prior.lowest.copy_(lowest.masked_fill(missing.all(0), 0))
    prior.highest.copy_(highest.masked_fill(missing.all(0), 0))


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
