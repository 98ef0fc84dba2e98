"""Arrays of a view: volumes of a case on its own grid, cropped to the slab."""

import math
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
import numpy.typing as npt

from storage import SlabGrid, to_source_grid

Volume = npt.NDArray[np.generic]


@dataclass(frozen=True)
class ViewGrid:
    """The part of a subject's grid that the slab covers, in RAS+ order."""

    grid: SlabGrid

    @cached_property
    def box(self) -> tuple[slice, slice, slice]:
        """Return the range of source indices along (s, h, w)."""
        ranges = []
        for size, slab, scale, offset in zip(
            self.grid.shape, self.grid.slab, self.grid.scale, self.grid.offset, strict=True
        ):
            # A voxel of the source belongs to the slab if its centre lies in a voxel of the slab.
            first = math.ceil(offset - scale / 2)
            last = math.ceil(offset + scale * (slab - 0.5))
            ranges.append(slice(max(first, 0), min(last, size)))
        s, h, w = ranges
        return s, h, w

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the size of the box (s, h, w)."""
        s, h, w = (part.stop - part.start for part in self.box)
        return s, h, w

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Return the affine from indices (w, h, s) of the box to RAS+ mm."""
        affine = np.array(self.grid.header.canonical_affine, np.float64)
        start = [part.start for part in reversed(self.box)]
        affine[:3, 3] = (affine @ [*start, 1])[:3]
        return affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the size of a voxel in mm (s, h, w)."""
        w, h, s = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(s), float(h), float(w)

    def from_slab(self, volume: npt.NDArray[np.generic], *, order: int) -> Volume:
        """Return a volume of the slab [s, h, w] on the box; see `storage.to_source_grid`."""
        return self.from_file(to_source_grid(volume, self.grid, order=order))

    def from_file(self, image: nib.Nifti1Image) -> Volume:
        """Return the box of an image on the subject's grid."""
        canonical = np.asarray(nib.as_closest_canonical(image).dataobj)
        return np.ascontiguousarray(canonical.transpose(2, 1, 0)[self.box])


def encode_flair(flair: Volume) -> bytes:
    """Return FLAIR in [-1, 1] as uint8, black for -1."""
    return np.round((np.clip(flair, -1, 1).astype(np.float32) + 1) * 127.5).astype("u1").tobytes()


def encode_probability(probability: Volume) -> bytes:
    """Return probabilities as little-endian float16."""
    return probability.astype("<f2").tobytes()


def encode_mask(mask: Volume) -> bytes:
    """Return a mask as bits, eight voxels a byte, first voxel in the highest bit."""
    return np.packbits(mask != 0).tobytes()
