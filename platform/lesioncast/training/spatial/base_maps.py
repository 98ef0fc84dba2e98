"""Base maps of the training cases, computed once for each case and choice of shown images.

A map is the log density of new-lesion voxels, without the case's own new lesions in the atlas. Only
active cases pass through the networks of a model with lesion loads, so only they have maps. The
files lie beside the runs, and each part is written in one step: a run that was stopped goes on with
the missing parts, and both stages and all workers read the same files.
"""

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.arrays import Bools
from lesioncast.bundle.spatial_base import SpatialBase, read_spatial_base
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.imaging.channels import (
    BASELINE,
    channels_outside_sessions,
    encode_case,
    parse_channels,
)
from lesioncast.training.data.order import Rows
from lesioncast.training.experiment import Experiment
from lesioncast.training.spatial.fit import FILE, new_lesions, parcellation_of
from storage import Location, Store, open_store
from storage.atomic import atomic_write

FOLDER = "base_maps"  # below the folder of runs
CASES_OF_A_PART = 16
DIGITS = 16  # of the digest that names the folder


@dataclass(frozen=True)
class BaseMaps:
    """Files of the base maps of a run's active cases."""

    folder: Path
    #: Position of each case among the active ones, -1 for an inactive one, [case].
    place: npt.NDArray[np.int64]
    #: Channels that each choice shows, the most informative first, [choice, channel]. The last
    #: choice shows nothing: its map is the atlas.
    choices: Bools
    #: Size (s, h, w) of a map.
    slab: tuple[int, int, int]

    @classmethod
    def of(cls, experiment: Experiment) -> "BaseMaps | None":
        """Return the base maps of an experiment; None if its networks have no base map."""
        base = experiment.base
        if base is None:
            return None
        place = np.full(len(base.active), -1)
        place[base.active] = np.arange(base.active.sum())
        channels = parse_channels(experiment.model.control.condition)
        later = channels_outside_sessions(channels, (BASELINE,))
        choices = np.stack([np.ones_like(later), ~later, np.zeros_like(later)])
        folder = experiment.runs / FOLDER / base.digest[:DIGITS]
        return cls(folder, place, choices, experiment.cases.slab)

    @property
    def parts(self) -> range:
        """Return the numbers of the parts."""
        return range(-(-int((self.place >= 0).sum()) // CASES_OF_A_PART))

    @cached_property
    def missing(self) -> list[int]:
        """Return the parts whose file is not there."""
        return [part for part in self.parts if not self.path(part).is_file()]

    def path(self, part: int) -> Path:
        """Return the file of a part, [case, choice, s, h, w] in half precision."""
        return self.folder / f"part_{part:04d}.npy"

    def batch(self, rows: Rows, hidden: Bools) -> Tensor:
        """Return the log densities of the cases at `rows` [b], [b, s, h, w].

        `hidden` [b, channel] marks the channels that a case loses. It gets the map of the most
        informative choice that shows none of them. An inactive case, which only fills up a batch,
        gets an even density.
        """
        even = -np.log(np.prod(self.slab))
        maps = np.full((len(rows), *self.slab), even, np.float32)
        for index, place in enumerate(self.place[rows]):
            if place >= 0:
                allowed = ~(self.choices & hidden[index]).any(axis=1)
                part, within = divmod(int(place), CASES_OF_A_PART)
                maps[index] = self._open(part)[within, int(allowed.argmax())]
        return torch.from_numpy(maps)

    @cached_property
    def _opened(self) -> dict[int, npt.NDArray[np.float16]]:
        return {}

    def _open(self, part: int) -> npt.NDArray[np.float16]:
        if part not in self._opened:
            self._opened[part] = np.load(self.path(part), mmap_mode="r")
        return self._opened[part]


def discard_base(experiment: Experiment) -> None:
    """Remove the spatial prior and the base maps of a run, to start over."""
    (experiment.runs / FILE).unlink(missing_ok=True)
    shutil.rmtree(experiment.runs / FOLDER, ignore_errors=True)


def compute_base_maps(experiment: Experiment, store: Store, *, workers: int) -> None:
    """Compute the missing base maps of an experiment on Ray, or in this process without workers."""
    maps, base = BaseMaps.of(experiment), experiment.base
    if maps is None or base is None or not maps.missing:
        return
    build = partial(build_part_writer, store.path, experiment, maps)
    written: Iterator[int]
    if workers == 0:
        written = map(build(), maps.missing)
    else:
        written = ordered_actor_map(build, maps.missing, workers=workers)
    for _ in with_progress(written, total=len(maps.missing), label="base maps, parts"):
        pass


def build_part_writer(
    store: Location, experiment: Experiment, maps: BaseMaps
) -> Callable[[int], int]:
    """Open a store and a fitted prior, and return a function that writes a part of the maps."""
    opened = open_store(store, inputs=experiment.cases.inputs)
    assert experiment.base is not None
    base = read_spatial_base(experiment.base.path)
    active = np.flatnonzero(maps.place >= 0)

    def write(part: int) -> int:
        rows = active[part * CASES_OF_A_PART : (part + 1) * CASES_OF_A_PART]
        content = [case_maps(opened, experiment.cases.cases[row], base, maps) for row in rows]
        write_array(maps.path(part), np.stack(content))
        return part

    return write


def case_maps(
    store: Store, index: int, base: SpatialBase, maps: BaseMaps
) -> npt.NDArray[np.float16]:
    """Return the maps of a training case, [choice, s, h, w]."""
    case, arrays = store.cases[index], store.read(index)
    condition = encode_case(arrays, channels=parse_channels(base.channels))
    own = base.without(new_lesions(arrays))
    parcellation = parcellation_of(case, arrays)
    return np.stack(
        [
            own.log_density(condition * shown[:, None, None, None], parcellation)
            for shown in maps.choices
        ]
    ).astype(np.float16)


def write_array(path: Path, array: npt.NDArray[np.float16]) -> None:
    """Write an array as .npy in one step."""
    content = io.BytesIO()
    np.save(content, array)
    atomic_write(path, content.getvalue())
