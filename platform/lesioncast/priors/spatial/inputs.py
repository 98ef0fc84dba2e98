"""What the spatial prior reads of a patient, and what it is fitted to.

Masks and parcellation may be absent. The parcellation of a store was made from the current session
(w048), so a forecast from w000 alone must be given none.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Bools, Float32s, Mask, Spacing

Shape = tuple[int, int, int]
Labels = npt.NDArray[np.integer]
Places = npt.NDArray[np.intp]
"""Flat indices of voxels."""

BASELINE, CURRENT = "w000", "w048"
FLAIR_CHANNELS = (f"{BASELINE}/flair", f"{CURRENT}/flair")
MASK_CHANNELS = (
    f"{BASELINE}/t2",
    f"{CURRENT}/t2",
    f"{CURRENT}/net2",
    f"{BASELINE}/gad",
    f"{CURRENT}/gad",
)
CHANNELS = (*FLAIR_CHANNELS, *MASK_CHANNELS)
"""The channels that are read. Others, such as those of the outcome, are ignored."""


@dataclass(frozen=True)
class SpatialInputs:
    """Images and masks of one patient before the outcome."""

    #: Volumes [s, h, w] by name, such as "w048/flair". FLAIR lies in [-1, 1], -1 outside the head.
    #: Masks are -1 and 1. A channel that the patient lacks is not in the mapping.
    channels: Mapping[str, Float32s]
    #: Size of a voxel (s, h, w) in mm.
    spacing: Spacing
    #: FreeSurfer ids [s, h, w], 0 outside the brain; None if there is no parcellation.
    parcellation: Labels | None = None

    @property
    def shape(self) -> Shape | None:
        """Return the size (s, h, w) of the volumes, None without any.

        Raises ValueError if the volumes differ in size.
        """
        volumes: dict[str, npt.NDArray[np.generic]] = {
            name: self.channels[name] for name in CHANNELS if name in self.channels
        }
        if self.parcellation is not None:
            volumes["parcellation"] = self.parcellation
        shapes = {name: volume.shape for name, volume in volumes.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"spatial prior: expected volumes of one size, got {shapes}")
        for shape in shapes.values():
            s, h, w = shape
            return s, h, w
        return None

    def flairs(self) -> list[Float32s]:
        """Return the FLAIR volumes that there are, baseline first."""
        names = [name for name in FLAIR_CHANNELS if name in self.channels]
        return [np.asarray(self.channels[name], np.float32) for name in names]

    def mask(self, *names: str) -> Mask | None:
        """Return the union of those of the named masks that there are, None without any."""
        masks = [self.channels[name] > 0 for name in names if name in self.channels]
        union: Bools = np.logical_or.reduce(masks) if masks else np.zeros(0, bool)
        return union if masks else None


@dataclass(frozen=True)
class SpatialCase:
    """One training case: what a forecast would read of it, and its new lesions at the outcome."""

    inputs: SpatialInputs
    #: True at voxels of new lesions, [s, h, w].
    outcome: Mask
