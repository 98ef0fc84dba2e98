"""Random numbers of a training step, keyed on (seed, step, position in the batch).

A case gets the same noise level, noise and dropout whichever worker computes it, and after a
resumption.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.training.data.order import Rows
from lesioncast.training.rng import RngStream, rng_for
from lesioncast.training.settings import DropoutRates

GOLDEN = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class ConditionDropout:
    """Parts of the condition that each case of a batch loses; True means lost."""

    #: The arm, [b].
    arm: npt.NDArray[np.bool_]
    #: Channels of c_f, [b, channels].
    channels: npt.NDArray[np.bool_]
    #: Covariates, [b, covariate].
    covariates: npt.NDArray[np.bool_]

    def at(self, positions: Rows) -> "ConditionDropout":
        """Return the dropout of the cases at `positions`."""
        return ConditionDropout(
            self.arm[positions], self.channels[positions], self.covariates[positions]
        )


def stratified_timesteps(seed: int, step: int, *, batch_size: int) -> npt.NDArray[np.float32]:
    """Draw one t in [0, 1) per case, [batch_size]. Each is uniform; together they are stratified.

    Stratified noise levels lower the variance of the loss (Kingma et al. 2021, appendix I.1, with
    i / B). Here t_i = (u + i / golden ratio) mod 1, of which every prefix, and the share of every
    worker, is stratified too.
    """
    u = rng_for(RngStream.TIME, seed, step).random()
    t = (u + np.arange(batch_size) / GOLDEN) % 1
    # Rounding to float32 must not reach 1.
    return np.minimum(t.astype(np.float32), np.float32(1 - 2**-24))


def condition_dropout(
    seed: int,
    step: int,
    *,
    batch_size: int,
    post_baseline: npt.NDArray[np.bool_],
    rates: DropoutRates,
    covariates: int = 0,
) -> ConditionDropout:
    """Draw what each case of a step loses. All kinds of loss are independent.

    `post_baseline` [channels] marks the channels after baseline, which `rates.session` removes.
    `covariates` is their number. Arm and condition are the paper's c_e and c_f (section 2).
    """
    channels = len(post_baseline)
    # Covariates and sessions have their own streams, so that a model with them loses the same arms
    # and channels as a model without.
    u = rng_for(RngStream.DROPOUT, seed, step).random((batch_size, 2 + channels))
    v = rng_for(RngStream.COVARIATE_DROPOUT, seed, step).random((batch_size, 1 + covariates))
    w = rng_for(RngStream.SESSION_DROPOUT, seed, step).random((batch_size, 1))
    whole_condition, single_channels = u[:, 1:2] < rates.condition, u[:, 2:] < rates.channel
    later_sessions = (w < rates.session) & post_baseline
    return ConditionDropout(
        arm=u[:, 0] < rates.arm,
        channels=whole_condition | single_channels | later_sessions,
        covariates=(v[:, :1] < rates.covariate) | (v[:, 1:] < rates.channel),
    )


def gaussian(
    seed: int,
    step: int,
    *,
    positions: Rows,
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Draw standard normal noise of the cases at `positions`, [len(positions), *shape].

    The noise is drawn on `device`. It is the same on every worker with such a device, but differs
    between kinds of device.
    """
    noise = torch.empty(len(positions), *shape, device=device)
    source = torch.Generator(device)
    for row, position in enumerate(positions):
        key = rng_for(RngStream.NOISE, seed, step, int(position)).integers(2**62)
        noise[row].normal_(generator=source.manual_seed(int(key)))
    return noise
