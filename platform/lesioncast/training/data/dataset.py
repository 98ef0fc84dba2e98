"""Dataset of cases: from a node's cache, or from the store itself, to the tensors of a batch."""

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
    """Input of the networks for b cases."""

    #: Target, FLAIR and NET2 at outcome, [b, 2, s, h, w].
    x: Tensor
    #: Rows of the arm table, [b]. The last row is the null arm.
    arm: Tensor
    #: Images c_f, [b, channels, s, h, w]; None in stage 1.
    condition: Tensor | None
    #: Encoded covariates, NaN if missing, [b, covariate]; None in stage 1 and without covariates.
    covariates: Tensor | None = None
    #: Log densities of new-lesion voxels, [b, s, h, w]; None for a model without a base map.
    log_density: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def at(self, rows: Tensor) -> "Batch":
        """Return the cases at `rows` [r], in that order."""
        return self._map(lambda tensor: tensor[rows])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Apply `function` to every tensor of the batch."""
        optional = (
            None if tensor is None else function(tensor)
            for tensor in (self.condition, self.covariates, self.log_density)
        )
        return Batch(function(self.x), function(self.arm), *optional)


@dataclass(frozen=True)
class LazyRows:
    """Some rows and sessions of a store's array, which are read when they are indexed."""

    array: Any
    #: Address of each row in the store.
    rows: Sequence[Any]
    #: Indices of the sessions.
    sessions: tuple[int, ...]
    shape: tuple[int, ...]

    def __getitem__(self, indices: Rows) -> npt.NDArray[Any]:
        """Read the rows at `indices`."""
        addresses = [self.rows[index] for index in indices]
        return read_rows(self.array, addresses, sessions=self.sessions)


@dataclass(frozen=True)
class CaseDataset:
    """Cases of a run, read-only."""

    #: FLAIR, [case, session, s, h, w].
    flair: npt.NDArray[np.float16] | LazyRows
    #: Masks, packed along w, [case, session, kind, s, h, ceil(w / 8)].
    masks: npt.NDArray[np.uint8] | LazyRows
    #: True if the channel exists, [case, session, channel].
    present: npt.NDArray[np.bool_]
    #: Index of the arm received, -1 if unknown, [case].
    arm: npt.NDArray[Any]
    #: True if NET2 has a lesion at outcome, [case].
    active: npt.NDArray[np.bool_]
    #: Sessions of the arrays.
    sessions: tuple[str, ...] = SESSIONS
    #: Encoded covariates, NaN if missing, [case, covariate].
    covariates: npt.NDArray[np.float32] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        sessions: tuple[str, ...] = SESSIONS,
        covariates: npt.NDArray[np.float32] | None = None,
    ) -> "CaseDataset":
        """Open the cases in a cache folder. Volumes are memory-mapped."""
        flair, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in VOLUMES)
        return cls(flair, masks, sessions=sessions, covariates=covariates, **_metadata(folder))

    @classmethod
    def stream(
        cls,
        folder: Path,
        store: Store,
        cases: Sequence[int],
        sessions: tuple[str, ...] = SESSIONS,
    ) -> "CaseDataset":
        """Open cases whose cache folder has no volumes. Each batch reads them from the store."""
        arrays, session_numbers = open_arrays(store.path), tuple(session_indices(sessions))
        rows = [store.cases[index].row for index in cases]
        specs = array_specs(store.spec.slab, sessions)
        flair, masks = (
            LazyRows(arrays[name], rows, session_numbers, (len(rows), *specs[name].shape))
            for name in VOLUMES
        )
        return cls(flair, masks, sessions=sessions, **_metadata(folder))

    @property
    def streamed(self) -> bool:
        """Return True if batches are read from the store."""
        return isinstance(self.flair, LazyRows)

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Return the size (s, h, w) of a volume."""
        s, h, w = self.flair.shape[2:]
        return s, h, w

    def batch(
        self, rows: Rows, dropout: ConditionDropout, *, null_arm: int, condition: Channels | None
    ) -> Batch:
        """Return the cases at `rows`, without what `dropout` takes from each of them.

        `condition` names the channels of c_f. None, in stage 1, gives no c_f.
        """
        arm = np.where(dropout.arm | (self.arm[rows] < 0), null_arm, self.arm[rows])
        encode_rows = partial(self._encode, rows, self.flair[rows], self.masks[rows])
        x = torch.from_numpy(encode_rows(TARGET_CHANNELS))
        images = covariates = None
        if condition is not None:
            encoded = encode_rows(condition)
            encoded[dropout.channels] = 0  # [b, c] picks whole channels of [b, c, s, h, w]
            images = torch.from_numpy(encoded)
        if condition is not None and self.covariates is not None:
            values = np.where(dropout.covariates, np.float32(np.nan), self.covariates[rows])
            covariates = torch.from_numpy(values)
        return Batch(x, torch.from_numpy(arm.astype(np.int64)), images, covariates)

    def _encode(
        self,
        rows: Rows,
        flair: npt.NDArray[np.float16],
        masks: npt.NDArray[np.uint8],
        channels: Channels,
    ) -> npt.NDArray[np.float32]:
        """Encode channels of the cases at `rows`, whose arrays are given, [row, c, s, h, w]."""
        encoded = np.empty((len(rows), len(channels), *self.spatial_shape), np.float32)
        for index, row in enumerate(rows):
            images = PackedImages(flair[index], masks[index], self.present[row], self.sessions)
            encode_channels(images, channels=channels, out=encoded[index], copy=_half_to_float)
        return encoded


def _half_to_float(to: npt.NDArray[np.float32], values: npt.NDArray[np.float16]) -> None:
    """Copy half floats to floats, like np.copyto."""
    # Torch takes a tenth of the time of NumPy, which converts half floats one by one.
    torch.from_numpy(to).copy_(torch.from_numpy(values))


def _metadata(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Load the small arrays of a cache folder."""
    return {name: np.load(folder / f"{name}.npy") for name in ("present", "arm", "active")}


def prefetch(
    make: Callable[[int], Item], steps: Iterable[int], *, depth: int = 1
) -> Iterator[tuple[int, Item]]:
    """Yield (step, make(step)) in order. Threads make the next `depth` items in the meantime."""
    with ThreadPoolExecutor(max_workers=depth) as threads:
        pending: deque[tuple[int, Future[Item]]] = deque()
        for step in steps:
            pending.append((step, threads.submit(make, step)))
            if len(pending) > depth:
                oldest, item = pending.popleft()
                yield oldest, item.result()
        for oldest, item in pending:
            yield oldest, item.result()
