"""Which cases a run learns from, and what a node is to keep of them."""

import hashlib
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
from storage.layout import array_specs


@dataclass(frozen=True)
class CaseSelection:
    """Some cases of a store, in order; `digest` names their content, `inputs` the table that the
    indices are of: a store that was converted anew since then is refused.

    A node keeps their `sessions` in the first of its folders `roots` that has room for the `size`
    in bytes, unless that is more than `limit`. `covariates` [case, covariate] are a few numbers of
    the case table, which travel with this description: the node's files are the same whatever
    covariates a model sees.
    """

    store: Location
    cases: tuple[int, ...]
    digest: str
    roots: tuple[Path, ...]
    slab: tuple[int, int, int]
    inputs: str
    sessions: tuple[str, ...] = SESSIONS
    limit: float = math.inf
    covariates: npt.NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Bytes of the volumes of all cases."""
        arrays = array_specs(self.slab, self.sessions)
        return len(self.cases) * sum(arrays[name].bytes_per_case for name in VOLUMES)

    @property
    def name(self) -> str:
        """Of the folder with the arrays."""
        return "-".join((self.digest[:20], *self.sessions))


def training_cases(store: Store, arms: tuple[str, ...]) -> CaseSelection:
    """The cases of the training split whose w096 FLAIR and NET2 are known.

    Raises TrainingError where there is none, or where the store's arms are not `arms`.
    """
    if tuple(store.spec.arms) != arms:
        raise TrainingError(
            f"{store.path}: expected the arms {', '.join(arms)}, got {', '.join(store.spec.arms)}; "
            "convert the trial again with this configuration"
        )
    cases = store.select(split="train", having=["/".join(channel) for channel in TARGET_CHANNELS])
    if not cases:
        raise TrainingError(
            f"{store.path}: expected training cases with FLAIR and NET2 at w096, got none"
        )
    indices = tuple(case.index for case in cases)
    digest, inputs = _digest(store, cases), store.table.inputs
    return CaseSelection(store.path, indices, digest, cache_roots(), store.spec.slab, inputs)


def _digest(store: Store, cases: Iterable[Case]) -> str:
    content = json.dumps([store.table.inputs, [case.subject for case in cases]])
    return hashlib.sha256(content.encode()).hexdigest()
