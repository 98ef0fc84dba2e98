"""Select the cases of a run and describe what a node caches of them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lesioncast.errors import TrainingError
from lesioncast.imaging.channels import TARGET_CHANNELS
from lesioncast.training.data.cache_location import cache_roots
from lesioncast.training.data.dataset import VOLUMES
from storage import SESSIONS, Case, Location, Store
from storage.digest import sha256_bytes
from storage.layout import array_specs


@dataclass(frozen=True)
class CaseSelection:
    """Cases of a store and where a node caches them."""

    #: Path or address of the store.
    store: Location
    #: Indices of the cases in the store, in order.
    cases: tuple[int, ...]
    #: Digest of the content of the cases.
    digest: str
    #: Folders that may hold the cache, best first.
    roots: tuple[Path, ...]
    #: Size (s, h, w) of a volume.
    slab: tuple[int, int, int]
    #: Digest of the case table that the indices refer to. A store that has been converted again
    #: since then is refused.
    inputs: str
    #: Sessions to cache.
    sessions: tuple[str, ...] = SESSIONS
    #: Largest size of the cache in bytes. Larger selections are streamed from the store.
    limit: float = math.inf
    #: Encoded covariates [case, covariate]. They are few numbers and travel with the selection, so
    #: that a node's files are the same whatever covariates a model has.
    covariates: npt.NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Return the bytes of the volumes of all cases."""
        arrays = array_specs(self.slab, self.sessions)
        return len(self.cases) * sum(arrays[name].bytes_per_case for name in VOLUMES)

    @property
    def name(self) -> str:
        """Return the name of the cache folder."""
        return "-".join((self.digest[:20], *self.sessions))


def training_cases(store: Store, arms: tuple[str, ...]) -> CaseSelection:
    """Select the cases of the training split that have FLAIR and NET2 at outcome.

    Raise TrainingError if there is none, or if the store's arms are not `arms`.
    """
    if tuple(store.spec.arms) != arms:
        raise TrainingError(
            f"{store.path}: expected the arms {', '.join(arms)}, got {', '.join(store.spec.arms)}; "
            "convert the trial again with this configuration"
        )
    cases = store.select(split="train", having=["/".join(channel) for channel in TARGET_CHANNELS])
    if not cases:
        raise TrainingError(
            f"{store.path}: expected training cases with FLAIR and NET2 at outcome, got none; "
            "check the split and the outcome session of the trial"
        )
    indices = tuple(case.index for case in cases)
    digest, inputs = _digest(store, cases), store.table.inputs
    return CaseSelection(store.path, indices, digest, cache_roots(), store.spec.slab, inputs)


def _digest(store: Store, cases: Iterable[Case]) -> str:
    """Return a digest of the store's inputs and the subjects."""
    content = json.dumps([store.table.inputs, [case.subject for case in cases]])
    return sha256_bytes(content.encode())
