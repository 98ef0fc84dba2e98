"""The random numbers of a step, keyed on (seed, step, place in the batch).

A case gets the same t, noise and drops whichever worker computes it, and after a resume.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.training.data.order import RngStream, Rows, rng_for

GOLDEN = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class ConditionDropout:
    """What each case of a batch loses: `arm` [b], `channels` [b, c] of its condition, and
    `covariates` [b, covariate]."""

    arm: npt.NDArray[np.bool_]
    channels: npt.NDArray[np.bool_]
    covariates: npt.NDArray[np.bool_]

    def at(self, positions: Rows) -> "ConditionDropout":
        """The drops of the cases at `positions`."""
        return ConditionDropout(
            self.arm[positions], self.channels[positions], self.covariates[positions]
        )


def stratified_timesteps(seed: int, step: int, *, batch_size: int) -> npt.NDArray[np.float32]:
    """One t in [0, 1) a case, [batch_size], those of the first places spread out as well as all.

    Each is uniform, and together they cover the noise levels evenly, which lowers the variance of
    the loss (Kingma et al. 2021, appendix I.1, with i / B): t_i = (u + i / golden ratio) mod 1, of
    which every beginning and every worker's share is spread out too.
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
    channels: int,
    arm_dropout: float,
    condition_dropout: float,
    channel_dropout: float,
    covariates: int = 0,
    covariate_dropout: float = 0.0,
    later: npt.NDArray[np.bool_] | None = None,
    session_dropout: float = 0.0,
) -> ConditionDropout:
    """What each case of a step loses: arm, condition (all channels), single channels, all `later`
    channels [channels], all and single covariates fall away independently.

    Arm and condition are the paper's c_e and c_f (section 2). Covariates and later channels draw
    from streams of their own, so that the others keep theirs.
    """
    u = rng_for(RngStream.DROPS, seed, step).random((batch_size, 2 + channels))
    v = rng_for(RngStream.COVARIATE_DROPS, seed, step).random((batch_size, 1 + covariates))
    lost = (u[:, 1:2] < condition_dropout) | (u[:, 2:] < channel_dropout)
    if later is not None:
        w = rng_for(RngStream.SESSION_DROPS, seed, step).random((batch_size, 1))
        lost |= (w < session_dropout) & later
    return ConditionDropout(
        arm=u[:, 0] < arm_dropout,
        channels=lost,
        covariates=(v[:, :1] < covariate_dropout) | (v[:, 1:] < channel_dropout),
    )


def gaussian(
    seed: int,
    step: int,
    *,
    positions: Rows,
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Standard normal eps of the cases at `positions`, [len(positions), *shape].

    Drawn on `device`: the same on any worker with such a device, not across kinds of device.
    """
    eps = torch.empty(len(positions), *shape, device=device)
    source = torch.Generator(device)
    for row, position in enumerate(positions):
        key = rng_for(RngStream.NOISE, seed, step, int(position)).integers(2**62)
        eps[row].normal_(generator=source.manual_seed(int(key)))
    return eps
