"""Cases by row, from a node's cache or the store itself to the tensors of a batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.imaging.channels import (
    SESSIONS,
    TARGET_CHANNELS,
    Channels,
    PackedImages,
    encode_channels,
)
from lesioncast.training.data.order import Rows
from lesioncast.training.randomness import ConditionDropout
from storage import Store
from storage.layout import array_specs, session_indices
from storage.store.array_reader import open_arrays, read_rows

VOLUMES = ("flair", "masks")

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
        return self._each(lambda tensor: tensor.to(device))

    def at(self, rows: Tensor) -> "Batch":
        """Some cases of it, in the order of `rows` [r]."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        condition, covariates = (
            None if tensor is None else change(tensor)
            for tensor in (self.condition, self.covariates)
        )
        return Batch(change(self.x), change(self.arm), condition, covariates)


@dataclass(frozen=True)
class LazyRows:
    """Rows and sessions of a store's array, read when they are indexed, as if they were here."""

    array: Any
    rows: Sequence[Any]  # as the store names them
    sessions: tuple[int, ...]
    shape: tuple[int, ...]

    def __getitem__(self, wanted: Rows) -> npt.NDArray[Any]:
        """The cases at the places `wanted`."""
        return read_rows(self.array, [self.rows[place] for place in wanted], sessions=self.sessions)


@dataclass(frozen=True)
class CaseDataset:
    """The cases of a run, read-only: `flair` float16 [case, session, s, h, w], `masks` packed along
    w [case, session, kind, s, h, ceil(w / 8)], `present` [case, session, channel], `arm` [case]
    with -1 where unknown, `active` [case], whether NET2 shows a lesion at w096, and `covariates`
    [case, covariate] as the network is told, NaN where absent. `sessions` are those of the arrays.
    """

    flair: npt.NDArray[np.float16] | LazyRows
    masks: npt.NDArray[np.uint8] | LazyRows
    present: npt.NDArray[np.bool_]
    arm: npt.NDArray[Any]
    active: npt.NDArray[np.bool_]
    sessions: tuple[str, ...] = SESSIONS
    covariates: npt.NDArray[np.float32] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        sessions: tuple[str, ...] = SESSIONS,
        covariates: npt.NDArray[np.float32] | None = None,
    ) -> "CaseDataset":
        """The cases in a cache's folder; the volumes stay on disk until they are asked for."""
        flair, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in VOLUMES)
        return cls(flair, masks, sessions=sessions, covariates=covariates, **_facts(folder))

    @classmethod
    def stream(
        cls,
        folder: Path,
        store: Store,
        cases: Sequence[int],
        sessions: tuple[str, ...] = SESSIONS,
    ) -> "CaseDataset":
        """The same without volumes in the folder: each batch reads its cases from the store."""
        arrays, places = open_arrays(store.path), tuple(session_indices(sessions))
        rows = [store.cases[index].row for index in cases]
        specs = array_specs(store.spec.slab, sessions)
        flair, masks = (
            LazyRows(arrays[name], rows, places, (len(rows), *specs[name].shape))
            for name in VOLUMES
        )
        return cls(flair, masks, sessions=sessions, **_facts(folder))

    @property
    def streamed(self) -> bool:
        """Whether batches read the store."""
        return isinstance(self.flair, LazyRows)

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """(s, h, w) of the slab."""
        s, h, w = self.flair.shape[2:]
        return s, h, w

    def batch(
        self, rows: Rows, drops: ConditionDropout, *, null_arm: int, condition: Channels | None
    ) -> Batch:
        """The cases at `rows`, without what `drops` [one for each row] takes away.

        `condition` names the channels of c_f; with None there is no c_f.
        """
        arm = np.where(drops.arm | (self.arm[rows] < 0), null_arm, self.arm[rows])
        encode_rows = partial(self._encode, rows, self.flair[rows], self.masks[rows])
        x = torch.from_numpy(encode_rows(TARGET_CHANNELS))
        images = covariates = None
        if condition is not None:
            encoded = encode_rows(condition)
            encoded[drops.channels] = 0  # [b, c] picks whole channels of [b, c, s, h, w]
            images = torch.from_numpy(encoded)
        if condition is not None and self.covariates is not None:
            known = np.where(drops.covariates, np.float32(np.nan), self.covariates[rows])
            covariates = torch.from_numpy(known)
        return Batch(x, torch.from_numpy(arm.astype(np.int64)), images, covariates)

    def _encode(
        self,
        rows: Rows,
        flair: npt.NDArray[np.float16],
        masks: npt.NDArray[np.uint8],
        channels: Channels,
    ) -> npt.NDArray[np.float32]:
        encoded = np.empty((len(rows), len(channels), *self.spatial_shape), np.float32)
        for place, row in enumerate(rows):
            images = PackedImages(flair[place], masks[place], self.present[row], self.sessions)
            encode_channels(images, channels=channels, out=encoded[place], copy=_half_to_float)
        return encoded


def _half_to_float(to: npt.NDArray[np.float32], values: npt.NDArray[np.float16]) -> None:
    """As np.copyto, in a tenth of the time: NumPy turns half floats into floats one by one."""
    torch.from_numpy(to).copy_(torch.from_numpy(values))


def _facts(folder: Path) -> dict[str, npt.NDArray[Any]]:
    return {name: np.load(folder / f"{name}.npy") for name in ("present", "arm", "active")}


def prefetch(
    make: Callable[[int], Item], steps: Iterable[int], *, depth: int = 1
) -> Iterator[tuple[int, Item]]:
    """(step, make(step)) in order, the next `depth` being made in threads while one is used."""
    with ThreadPoolExecutor(max_workers=depth) as threads:
        pending: deque[tuple[int, Future[Item]]] = deque()
        for step in steps:
            pending.append((step, threads.submit(make, step)))
            if len(pending) > depth:
                ready, item = pending.popleft()
                yield ready, item.result()
        for ready, item in pending:
            yield ready, item.result()
