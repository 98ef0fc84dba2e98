"""Some samples of each arm, kept after a forecast has finished so that they can be shown."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lesioncast.imaging.regions import REGIONS, lesions_in_regions
from storage.atomic import atomic_write

MAX_KEPT_SAMPLES = 16

_REGIONS = "regions/"
_MASKS = "masks/"

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class KeptSamples:
    """Samples on the slab, by arm."""

    #: Masks of the first samples by arm, [k, s, h, w] with k at most `MAX_KEPT_SAMPLES`.
    masks: Mapping[str, Masks]
    #: Share of all samples with a lesion in a region, by arm and region; empty if unknown.
    regions: Mapping[str, Mapping[str, float]]


def keep_samples(
    masks_by_arm: Mapping[str, Masks], parcellation: npt.NDArray[np.integer] | None
) -> KeptSamples:
    """Return the first samples of each arm, and the regional risks over all of its samples.

    `masks_by_arm` holds [k, s, h, w]. Without a parcellation [s, h, w] no regional risk is known.
    """
    regions: dict[str, Mapping[str, float]] = {}
    if parcellation is not None:
        for arm, masks in masks_by_arm.items():
            shares = lesions_in_regions(masks, parcellation).mean(axis=0)
            regions[arm] = {name: float(share) for name, share in zip(REGIONS, shares, strict=True)}
    return KeptSamples(
        {arm: masks[:MAX_KEPT_SAMPLES] for arm, masks in masks_by_arm.items()}, regions
    )


def write_kept_samples(path: Path, kept: KeptSamples) -> None:
    """Write samples as a compressed NumPy archive, whole or not at all."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for arm, masks in kept.masks.items():
        arrays[_MASKS + arm] = np.packbits(masks, axis=-1)
    for arm, shares in kept.regions.items():
        arrays[_REGIONS + arm] = np.array([shares[name] for name in REGIONS])
    widths = {masks.shape[-1] for masks in kept.masks.values()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, width=np.array(sorted(widths)), **arrays)
    atomic_write(path, buffer.getvalue())


def read_kept_samples(path: Path, arms: Sequence[str]) -> KeptSamples:
    """Read the samples of `arms`. Raises FileNotFoundError if there are none."""
    with np.load(path, allow_pickle=False) as archive:
        (width,) = archive["width"]
        masks = {
            arm: np.unpackbits(archive[_MASKS + arm], axis=-1, count=int(width)).astype(bool)
            for arm in arms
        }
        regions = {
            arm: dict(zip(REGIONS, map(float, archive[_REGIONS + arm]), strict=True))
            for arm in arms
            if _REGIONS + arm in archive
        }
    return KeptSamples(masks, regions)
