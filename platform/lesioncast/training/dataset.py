"""Cases by row, from a node's cache to the tensors of a batch."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.slab import TARGET, Channels, encode
from lesioncast.training.noise import Drops
from lesioncast.training.order import Rows
from storage import unpack_masks

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """What the network sees of b cases: the target `x` [b, 2, s, h, w], `arm` [b] (row numbers of
    the arm table, the last one null), `condition` [b, channels, s, h, w], None in stage 1, and
    `covariates` [b, covariate], NaN where absent, None in stage 1 and where a model has none."""

    x: Tensor
    arm: Tensor
    condition: Tensor | None
    covariates: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        condition = None if self.condition is None else self.condition.to(device)
        covariates = None if self.covariates is None else self.covariates.to(device)
        return Batch(self.x.to(device), self.arm.to(device), condition, covariates)


@dataclass(frozen=True)
class Cases:
    """The cached cases, read-only: `flair` float16 [case, session, s, h, w], `masks` packed along w
    [case, session, kind, s, h, ceil(w / 8)], `present` [case, session, channel], `arm` [case] with
    -1 where unknown, `active` [case], whether NET2 shows a lesion at w096, and `covariates` [case,
    covariate] as the network is told, NaN where absent."""

    flair: npt.NDArray[np.float16]
    masks: npt.NDArray[np.uint8]
    present: npt.NDArray[np.bool_]
    arm: npt.NDArray[Any]
    active: npt.NDArray[np.bool_]
    covariates: npt.NDArray[np.float32] | None = None

    @classmethod
    def open(cls, folder: Path, covariates: npt.NDArray[np.float32] | None = None) -> "Cases":
        """The cases in a cache's folder; the volumes stay on disk until they are asked for."""
        large = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("flair", "masks"))
        small = (np.load(folder / f"{name}.npy") for name in ("present", "arm", "active"))
        return replace(cls(*large, *small), covariates=covariates)

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """(s, h, w) of the slab."""
        s, h, w = self.flair.shape[2:]
        return s, h, w

    def batch(
        self, rows: Rows, drops: Drops, *, null_arm: int, condition: Channels | None
    ) -> Batch:
        """The cases at `rows`, without what `drops` [one for each row] takes away.

        `condition` names the channels of c_f; with None there is no c_f.
        """
        arm = np.where(drops.arm | (self.arm[rows] < 0), null_arm, self.arm[rows])
        x = torch.from_numpy(self._encode(rows, TARGET))
        images = covariates = None
        if condition is not None:
            encoded = self._encode(rows, condition)
            encoded[drops.channels] = 0  # [b, c] picks whole channels of [b, c, s, h, w]
            images = torch.from_numpy(encoded)
        if condition is not None and self.covariates is not None:
            known = np.where(drops.covariates, np.float32(np.nan), self.covariates[rows])
            covariates = torch.from_numpy(known)
        return Batch(x, torch.from_numpy(arm.astype(np.int64)), images, covariates)

    def _encode(self, rows: Rows, channels: Channels) -> npt.NDArray[np.float32]:
        width = self.flair.shape[-1]
        return np.stack(
            [
                encode(
                    self.flair[row],
                    unpack_masks(self.masks[row], width),
                    self.present[row],
                    channels=channels,
                )
                for row in rows
            ]
        )


def ahead(make: Callable[[int], Item], steps: Iterable[int]) -> Iterator[tuple[int, Item]]:
    """(step, make(step)) in order, the next one being made in a thread while one is used."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending = None
        for step in steps:
            following = (step, thread.submit(make, step))
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = following
        if pending is not None:
            yield pending[0], pending[1].result()
