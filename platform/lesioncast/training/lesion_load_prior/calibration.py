"""Set what makes the prior's mean P(active) and mean count of each arm those of its training cases.

There is an offset and a slope for each arm and each pattern of images, because a prior with shrunk
weights misses the means of most of them.
"""

import torch
from torch import Tensor

from lesioncast.diffusion.lesion_load import LesionLoadPrior, shift_to_sum, tilt
from lesioncast.priors.input_patterns import PATTERNS, channels_of_pattern
from lesioncast.training.lesion_load_prior.data import PriorTrainingData

#: Standard deviation of an arm's mean count about that of the uncalibrated prior, as a share.
COUNT_SD = 0.2
SLOPE_LIMIT, BISECTIONS = 4.0, 20


@torch.no_grad()
def calibrate_arms(prior: LesionLoadPrior, data: PriorTrainingData) -> None:
    """Set offset and slope of each arm so that mean P(active) and mean count are the observed ones.

    The mean is over the training cases who received the arm, once for each pattern of images that
    they may be left with. The null arm has the cases of all arms. An arm without cases keeps the
    offset 0. Where all or none of an arm's cases are active, half a case is taken from the share or
    added to it, since no offset gives 0 or 1. Calibration in the large: Steyerberg 2019, section
    15.3. The observed mean count is shrunk towards the prior's, because few cases have most of the
    lesions.
    """
    prior.arm_offset.zero_()
    prior.count_slope.zero_()
    active = data.lesion_load > 0
    for pattern in range(PATTERNS):
        patient = features_of_pattern(prior, data, pattern)
        of_pattern = prior.pattern(patient) == pattern
        for arm in range(prior.arms):
            rows = of_pattern & ((data.arm == arm) | (arm == prior.arms - 1))
            if rows.any():
                offset = offset_to_share(prior, patient[rows], arm, active[rows])
                prior.arm_offset[pattern, arm] = offset
                slope = slope_to_count(prior, patient[rows], arm, data.lesions[rows])
                prior.count_slope[pattern, arm] = slope


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


def slope_to_count(prior: LesionLoadPrior, patient: Tensor, arm: int, lesions: Tensor) -> float:
    """Return the slope of the prior's loads under `arm` that gives the mean of `lesions` [n].

    The mean is shrunk first. `patient` [n, feature] are the features of the same cases. The slope
    changes no P(active). The root is found by bisection.
    """
    logits = prior(patient, torch.full((len(lesions),), arm, device=patient.device)).double()
    share = logits.softmax(1)
    p_active, of_class = 1 - share[:, 0], prior.lesions.double()
    expected = share @ of_class
    target = shrunken_mean(lesions.double(), expected)

    def mean_count(slope: float) -> float:
        slopes = logits.new_full((len(logits), 1), slope)
        tilted = tilt(logits[:, 1:], slopes, prior.log_lesions[1:].double()).softmax(1)
        return float((p_active * (tilted @ of_class[1:])).mean())

    below, above = -SLOPE_LIMIT, SLOPE_LIMIT
    for _ in range(BISECTIONS):
        slope = (below + above) / 2
        below, above = (slope, above) if mean_count(slope) < target else (below, slope)
    return slope


def shrunken_mean(observed: Tensor, expected: Tensor) -> float:
    """Return the mean of `observed` [n], shrunk towards that of `expected` [n].

    The weight of the observed mean is its share of the variance: `COUNT_SD` against the squared
    standard error of the mean difference (the posterior mean of a normal variable with a normal
    prior, Gelman et al. 2013, equation 2.10).
    """
    difference, centre = observed - expected, expected.mean()
    prior_variance = (COUNT_SD * centre) ** 2
    error = difference.square().mean() / len(observed)
    return float(centre + prior_variance / (prior_variance + error) * difference.mean())
