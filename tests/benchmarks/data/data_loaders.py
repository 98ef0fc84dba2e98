"""Loaders that bring all cases of a trial to a training step as tensors, in a given order.

Each yields the number of cases of every batch once it has x and the condition of all of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import ray.data
import torch
from monai.data import DataLoader, PersistentDataset
from monai.transforms import Compose, Transform
from torch.utils.data import SequentialSampler

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.diffusion.settings.networks import CONDITION
from lesioncast.imaging.channels import TARGET_CHANNELS, Channels, parse_channels
from lesioncast.training.data.dataset import Batch, CaseDataset, prefetch
from lesioncast.training.data.node_cache import open_cases, read_in_process
from lesioncast.training.data.selection import CaseSelection, training_cases
from lesioncast.training.randomness import ConditionDropout
from storage import Case, Store, TrialLayout
from storage.preprocess.grid import to_slab
from storage.store.ray_datasource import ZarrDatasource
from storage.trial.path_patterns import match_subject

NIBABEL, MONAI = "nibabel, .nii.gz", "MONAI PersistentDataset, DataLoader"
OURS = "node cache, by index"
RAY_DATA, STREAMED = "store, Ray Data", "store, by index"
CHANNELS: Channels = (*TARGET_CHANNELS, *parse_channels(CONDITION))

Order = npt.NDArray[Any]
Loader = Callable[[Order], Iterator[int]]


def loaders(
    store: Store, folder: Path, *, bids: Path, layout: TrialLayout, batch: int
) -> dict[str, Loader]:
    """Return the loaders by name. Each is called with an order of the cases."""
    cache = replace(training_cases(store, PAPER_ARM_NAMES), roots=(folder / "cache",))
    files = [_files(case, bids, layout) for case in store.cases]
    return {
        OURS: partial(by_index, open_cases(cache, read_in_process), batch=batch),
        STREAMED: partial(
            by_index, open_cases(replace(cache, limit=0), read_in_process), batch=batch
        ),
        RAY_DATA: partial(through_ray_data, cache, batch=batch),
        NIBABEL: partial(with_nibabel, files, batch=batch),
        **{
            name: partial(with_monai, files, folder / "monai", batch=batch, workers=workers)
            for name, workers in ((MONAI, 0), (f"{MONAI}, 2 workers", 2))
        },
    }


def by_index(cases: CaseDataset, order: Order, *, batch: int) -> Iterator[int]:
    """Read the node cache by index, as the training loop does."""
    parts = np.array_split(order, range(batch, len(order), batch))
    depth = 4 if cases.streamed else 1
    for _, prepared in prefetch(
        lambda step: _batch(cases, parts[step]), range(len(parts)), depth=depth
    ):
        yield _held(prepared)


def through_ray_data(cache: CaseSelection, order: Order, *, batch: int) -> Iterator[int]:
    """Read the cases with Ray Data in the given (shuffled) order."""
    source = ZarrDatasource(
        cache.store,
        columns=("case", "flair", "masks", "present", "arm"),
        cases=np.array(cache.cases)[order].tolist(),
        batch_size=batch,
    )
    dataset = ray.data.read_datasource(source, override_num_blocks=source.batches)
    for rows in dataset.iter_batches(batch_size=batch, batch_format="numpy"):
        active = np.zeros(len(rows["arm"]), bool)
        cases = CaseDataset(rows["flair"], rows["masks"], rows["present"], rows["arm"], active)
        yield _held(_batch(cases, np.arange(len(active))))


def _batch(cases: CaseDataset, rows: Order) -> Batch:
    kept = ConditionDropout(
        *(np.zeros((len(rows), *rest), bool) for rest in ((), (len(CONDITION),), (0,)))
    )
    null = len(PAPER_ARM_NAMES)
    return cases.batch(rows, kept, null_arm=null, condition=parse_channels(CONDITION))


def _held(batch: Batch) -> int:
    assert batch.condition is not None
    return len(batch.x)


@dataclass(frozen=True)
class Files:
    """A case and the paths of its channels. MONAI would take a plain tuple apart."""

    case: Case
    paths: dict[tuple[str, str], str]


def _files(case: Case, bids: Path, layout: TrialLayout) -> Files:
    found = {}
    for session, channel in CHANNELS:
        pattern = getattr(layout, channel)
        made_from = (
            p for p in case.digests if match_subject(p, pattern, session=session) is not None
        )
        found[session, channel] = str(bids / next(made_from))
    return Files(case, found)


def read_files(files: Files) -> torch.Tensor:
    """Read [channel, s, h, w] of a case from its RAS+ files. FLAIR is not scaled."""
    volumes = [
        to_slab(
            np.asarray(nib.load(files.paths[key]).dataobj, np.float32).T, files.case.grid, order=0
        )
        for key in CHANNELS
    ]
    return torch.from_numpy(np.stack(volumes))


def with_nibabel(files: list[Files], order: Order, *, batch: int) -> Iterator[int]:
    """Read each case from its NIfTI files every time."""
    for part in np.array_split(order, range(batch, len(order), batch)):
        yield len(torch.stack([read_files(files[place]) for place in part]))


class Read(Transform):  # type: ignore[misc]
    """MONAI transform, cached on disk: a case's channels as the network takes them."""

    def __call__(self, files: Files) -> torch.Tensor:
        return read_files(files)


def with_monai(
    files: list[Files], folder: Path, order: Order, *, batch: int, workers: int
) -> Iterator[int]:
    """Read through MONAI's disk cache, which the warm-up round fills."""
    data = [files[place] for place in order]
    dataset = PersistentDataset(data, Compose([Read()]), cache_dir=folder, hash_func=_name)
    sampler = SequentialSampler(dataset)  # the order is the shuffle
    for tensors in DataLoader(dataset, batch_size=batch, sampler=sampler, num_workers=workers):
        yield len(tensors)


def _name(files: Files) -> bytes:
    return files.case.subject.encode()
