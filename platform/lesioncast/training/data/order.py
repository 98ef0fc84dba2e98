"""Which cases a step sees: a pure function of (seed, step), shared out over the workers.

Nothing here has a state, so a resumed run and a run on another number of workers see the same
cases in the same order. The epochs follow each other without a gap; a batch may span two.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class RngStream(IntEnum):
    """What a random number is for; each purpose draws from a stream of its own."""

    ORDER = 0
    BALANCE = 1
    TIME = 2
    NOISE = 3
    DROPS = 4
    COVARIATE_DROPS = 5
    SESSION_DROPS = 6
    LOAD = 7


def rng_for(stream: RngStream, seed: int, *counters: int) -> np.random.Generator:
    """The generator of one purpose at (seed, counters)."""
    return np.random.default_rng((int(stream), seed, *counters))


def epoch_rows(active: npt.NDArray[np.bool_], *, seed: int, epoch: int, balanced: bool) -> Rows:
    """The rows of one epoch, shuffled; `active` [case] marks those with NET2 at w096.

    Balanced (paper, section 3), the more frequent class gives as many cases as the other has,
    drawn afresh each epoch. Raises ValueError where one class is empty.
    """
    rows = np.arange(len(active))
    if balanced:
        rows = _balanced(active, seed=seed, epoch=epoch)
    return rng_for(RngStream.ORDER, seed, epoch).permutation(rows)


def _balanced(active: npt.NDArray[np.bool_], *, seed: int, epoch: int) -> Rows:
    classes = np.flatnonzero(active), np.flatnonzero(~active)
    size = min(map(len, classes))
    if size == 0:
        raise ValueError(
            f"balanced: expected active and inactive cases, got {len(classes[0])} and "
            f"{len(classes[1])}; set balanced to false"
        )
    rng = rng_for(RngStream.BALANCE, seed, epoch)
    return np.concatenate([rng.choice(rows, size, replace=False) for rows in classes])


def batch_rows(
    active: npt.NDArray[np.bool_], step: int, *, seed: int, batch_size: int, balanced: bool
) -> Rows:
    """The rows of the whole batch of `step`, [batch_size], whatever the number of workers."""
    length = len(epoch_rows(active, seed=seed, epoch=0, balanced=balanced))
    start = step * batch_size
    first, last = start // length, (start + batch_size - 1) // length
    rows = np.concatenate(
        [
            epoch_rows(active, seed=seed, epoch=epoch, balanced=balanced)
            for epoch in range(first, last + 1)
        ]
    )
    offset = start - first * length
    return rows[offset : offset + batch_size]


def active_first(rows: Rows, active: npt.NDArray[np.bool_]) -> Rows:
    """A batch's rows in an order in which every worker's share has as many active cases.

    Where lesion loads are told, only these go through the networks, and all wait for the slowest.
    """
    return rows[np.argsort(~active[rows], kind="stable")]


def worker_positions(rank: int, *, world_size: int, batch_size: int) -> Rows:
    """The places in the batch that a worker computes: every `world_size`-th, from `rank`."""
    return np.arange(rank, batch_size, world_size)
