"""Choose the cases of a step as a pure function of (seed, step), and share them among workers.

There is no state here. A resumed run, and a run on another number of workers, sees the same cases
in the same order. Epochs follow each other without a gap, so that a batch may span two.
"""

import numpy as np
import numpy.typing as npt

from lesioncast.training.rng import RngStream, rng_for

Rows = npt.NDArray[np.int64]


def epoch_rows(active: npt.NDArray[np.bool_], *, seed: int, epoch: int, balanced: bool) -> Rows:
    """Return the rows of one epoch, shuffled. `active` [case] marks cases with NET2 at outcome.

    With `balanced` (paper, section 3), the more frequent class gives as many cases as the other
    class has, drawn anew in each epoch. Raise ValueError if one class is empty.
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
    """Return the rows of the whole batch of `step`, [batch_size]."""
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
    """Return a batch's rows with active cases first.

    Workers take every n-th row, so that each then has the same number of active cases, up to one.
    """
    # In a model with lesion loads only active cases pass through the networks, and all workers
    # wait for the one that has most of them.
    return rows[np.argsort(~active[rows], kind="stable")]


def worker_positions(rank: int, *, world_size: int, batch_size: int) -> Rows:
    """Return the positions in the batch that a worker computes: every `world_size`-th from `rank`.

    This is the rule of torch's DistributedSampler.
    """
    return np.arange(rank, batch_size, world_size)
