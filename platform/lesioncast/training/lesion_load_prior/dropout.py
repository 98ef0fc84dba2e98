"""Take parts of their input from the cases that the prior is fitted to, since forecasts lack some.

Besides the dropout of stage 2, whole types of input go together: a hospital without gadolinium has
none at any session, and one without segmentations has no mask at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lesioncast.arrays import Bools
from lesioncast.imaging.channels import (
    BASELINE,
    MASKS,
    channels_outside_sessions,
    parse_channels,
)
from lesioncast.training import randomness
from lesioncast.training.lesion_load_prior.data import PriorTrainingData
from lesioncast.training.rng import RngStream, rng_for
from lesioncast.training.settings import DropoutRates


@dataclass(frozen=True)
class PriorDropout:
    """Rates at which a case loses parts of its input while the prior is fitted."""

    #: Rates of independent losses, those of stage 2.
    rates: DropoutRates = DropoutRates()
    #: Rate at which a case loses all gadolinium masks, and nothing else.
    gadolinium: float = 0.15
    #: Rate at which a case loses all T2 and all gadolinium masks.
    t2_and_gadolinium: float = 0.15
    #: Rate at which a case loses all masks.
    masks: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.gadolinium + self.t2_and_gadolinium + self.masks <= 1:
            raise ValueError(
                "expected rates of gadolinium, T2 and gadolinium, and masks that sum to at most 1, "
                f"got {self.gadolinium}, {self.t2_and_gadolinium} and {self.masks}; lower one"
            )


def drop_inputs(
    data: PriorTrainingData,
    dropout: PriorDropout,
    channels: Sequence[str],
    *,
    seed: int,
    step: int,
    null_arm: int,
) -> PriorTrainingData:
    """Return the cases of a step without what they lose.

    A lost channel becomes 0, a lost covariate NaN, a lost arm the null arm. `channels` are the
    names of the condition's channels.
    """
    cases = len(data.arm)
    lost = randomness.condition_dropout(
        seed,
        step,
        batch_size=cases,
        post_baseline=channels_outside_sessions(parse_channels(channels), (BASELINE,)),
        rates=dropout.rates,
        covariates=data.covariates.shape[1],
    )
    types = lost_types(dropout, channels, seed=seed, step=step, cases=cases)
    no_channel, no_covariate, no_arm = (
        torch.from_numpy(one).to(data.arm.device)
        for one in (lost.channels | types, lost.covariates, lost.arm)
    )
    return replace(
        data,
        burden=data.burden.masked_fill(no_channel[:, :, None], 0),
        covariates=data.covariates.masked_fill(no_covariate, torch.nan),
        arm=data.arm.masked_fill(no_arm, null_arm),
    )


def lost_types(
    dropout: PriorDropout, channels: Sequence[str], *, seed: int, step: int, cases: int
) -> Bools:
    """Draw the channels that each case of a step loses as part of a whole type, [case, channel]."""
    kinds = np.array([kind for _, kind in parse_channels(channels)])
    types = ((dropout.gadolinium, ("gad",)), (dropout.t2_and_gadolinium, ("t2", "gad")))
    u = rng_for(RngStream.INPUT_TYPES, seed, step).random((cases, 1))
    lost = np.zeros((cases, len(kinds)), bool)
    start = 0.0
    for rate, of_type in (*types, (dropout.masks, MASKS)):
        lost |= (start <= u) & (u < start + rate) & np.isin(kinds, of_type)
        start += rate
    return lost
