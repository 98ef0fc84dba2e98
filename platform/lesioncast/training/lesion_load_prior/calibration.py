"""Set what makes the prior's mean P(active) of each arm the share of its active training cases.

There is an offset for each arm and each pattern of images, because a prior with shrunk weights
misses the means of most of them.
"""

import torch
from torch import Tensor

from lesioncast.diffusion.lesion_load import LesionLoadPrior, shift_to_sum
from lesioncast.priors.input_patterns import PATTERNS, channels_of_pattern
from lesioncast.training.lesion_load_prior.data import PriorTrainingData


@torch.no_grad()
def calibrate_arms(prior: LesionLoadPrior, data: PriorTrainingData) -> None:
    """Set the offset of each arm so that its mean P(active) is the observed share.

    The mean is over the training cases who received the arm, once for each pattern of images that
    they may be left with. The null arm has the cases of all arms. An arm without cases keeps the
    offset 0. Where all or none of an arm's cases are active, half a case is taken from the share or
    added to it, since no offset gives 0 or 1. Calibration in the large: Steyerberg 2019, section
    15.3.
    """
    prior.arm_offset.zero_()
    active = data.lesion_load > 0
    for pattern in range(PATTERNS):
        patient = features_of_pattern(prior, data, pattern)
        of_pattern = prior.pattern(patient) == pattern
        for arm in range(prior.arms):
            rows = of_pattern & ((data.arm == arm) | (arm == prior.arms - 1))
            if rows.any():
                offset = offset_to_share(prior, patient[rows], arm, active[rows])
                prior.arm_offset[pattern, arm] = offset


def features_of_pattern(prior: LesionLoadPrior, data: PriorTrainingData, pattern: int) -> Tensor:
    """Return the features [n, feature] of the cases without the channels outside a pattern."""
    shown = torch.tensor(channels_of_pattern(pattern, prior.channels), device=data.arm.device)
    burden = data.burden.masked_fill(~shown[:, None], 0)
    return prior.patient_features(burden, data.covariates, data.readings)


def offset_to_share(prior: LesionLoadPrior, patient: Tensor, arm: int, active: Tensor) -> float:
    """Return what to add to the log odds under `arm` so that they give the share of `active` [n].

    `patient` [n, feature] are the features of the same cases.
    """
    cases = len(active)
    logits = prior(patient, torch.full((cases,), arm, device=patient.device)).double()
    log_odds = logits[:, 1:].logsumexp(1) - logits[:, 0]
    return shift_to_sum(log_odds, active.double().sum().clamp(0.5, cases - 0.5))
