"""Smooth and shift volumes by distances in millimetres.

Each axis is one matrix product, so most of the time is spent in BLAS. Wide Gaussians read sums of
several voxels, which changes them little and makes them cheap at every resolution.
"""

from functools import lru_cache

import numpy as np

from lesioncast.arrays import Float32s, Spacing

# A Gaussian reads blocks of at most this share of its standard deviation.
_BLOCK_SHARE = 0.6


@lru_cache(maxsize=256)
def _matrices(size: int, step: float, sigma: float, width: int) -> tuple[Float32s, Float32s]:
    """Return the matrices of one axis: voxels to sums of `width` voxels, and sums to smoothed ones.

    Their shapes are [size, blocks] and [blocks, size]. What lies beyond the volume is 0. Summing a
    block adds its own variance, by which the Gaussian is narrower.
    """
    block = np.arange(size) // width
    sums = (block[:, None] == np.arange(block[-1] + 1)).astype(np.float32)
    place = np.arange(size) * step
    centre = (sums.T @ place) / sums.sum(axis=0)
    variance = sigma**2 - (width**2 - 1) * step**2 / 12
    reach = np.arange(-int(8 * sigma / step) - 1, int(8 * sigma / step) + 2) * step
    total = np.exp(-(reach**2) / (2 * variance)).sum()
    spread = np.exp(-((centre[:, None] - place) ** 2) / (2 * variance)) / total
    return sums, np.ascontiguousarray(spread, np.float32)


def _block(step: float, sigma: float) -> int:
    """Return how many voxels of `step` mm a Gaussian of `sigma` mm may read as one."""
    return max(1, int(_BLOCK_SHARE * sigma / step))


def smooth(volumes: Float32s, spacing: Spacing, sigma: float) -> Float32s:
    """Return volumes [..., s, h, w] smoothed by a Gaussian of standard deviation `sigma` mm.

    Voxels beyond the edges count as 0. The operation is linear.
    """
    s, h, w = volumes.shape[-3:]
    # Slices are few and thick, so they are not summed.
    _, spread_s = _matrices(s, spacing[0], sigma, 1)
    sum_h, spread_h = _matrices(h, spacing[1], sigma, _block(spacing[1], sigma))
    sum_w, spread_w = _matrices(w, spacing[2], sigma, _block(spacing[2], sigma))
    rows = volumes.reshape(-1, w).astype(np.float32, copy=False)
    rows = rows @ sum_w if sum_w.shape[1] < w else rows
    columns = rows.shape[-1]
    planes = rows.reshape(-1, h, columns)
    planes = np.asarray(sum_h.T @ planes if sum_h.shape[1] < h else planes, np.float32)
    slabs = spread_s.T @ (spread_h.T @ planes).reshape(-1, s, h * columns)
    smoothed = slabs.reshape(-1, columns) @ spread_w
    return np.asarray(smoothed.reshape(volumes.shape), np.float32)


def shift(volume: Float32s, spacing: Spacing, offset: tuple[float, float, float]) -> Float32s:
    """Return the value at `offset` (s, h, w) mm from each voxel [s, h, w], linearly interpolated.

    Beyond the edges the volume continues with its outermost values.
    """
    shifted = volume
    for axis, (step, distance) in enumerate(zip(spacing, offset, strict=True)):
        if distance:
            size = volume.shape[axis]
            place = np.clip(np.arange(size) + distance / step, 0, size - 1)
            low = place.astype(np.intp)
            share = (place - low).astype(np.float32)
            before = shifted.take(low, axis)
            if share.any():
                after = shifted.take(np.minimum(low + 1, size - 1), axis)
                before += (after - before) * np.expand_dims(share, tuple(range(1, 3 - axis)))
            shifted = before
    return np.asarray(shifted, np.float32)
