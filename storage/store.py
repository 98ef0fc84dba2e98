"""Open a store and read cases from it; create the empty arrays that conversion fills."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from storage.cases import Case, CaseTable, decode_table
from storage.errors import StoreError
from storage.layout import (
    ARRAYS,
    ATTRIBUTE,
    CASE_TABLE,
    SCHEMA,
    StoreSpec,
    array_specs,
    channel_index,
    group_attributes,
    unpack_masks,
)
from storage.prepare import CaseArrays


@dataclass(frozen=True)
class Store:
    """A store that has been checked: `spec` for all cases, `cases` in the order of their index."""

    path: Path
    spec: StoreSpec
    table: CaseTable

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.table.cases

    def select(
        self, *, split: str | None = None, arm: str | None = None, having: Sequence[str] = ()
    ) -> list[Case]:
        """The cases of a split (train, val, test, unlabelled) and of an arm, or of all.

        `having` names channels that a case must have, such as w096/net2.
        """
        wanted = [channel_index(name) for name in having]
        return [
            case
            for case in self.cases
            if split in (None, case.split)
            and arm in (None, case.arm)
            and all(case.present[place] for place in wanted)
        ]

    def case(self, subject: str) -> Case:
        """The case of a subject. Raises StoreError where it has none, with the refusal if any."""
        for case in self.cases:
            if case.subject == subject:
                return case
        refused = [str(refusal) for refusal in self.table.refused if refusal.subject == subject]
        why = f"it was refused: {refused[0]}" if refused else f"it holds {len(self.cases)} others"
        raise StoreError(f"{self.path}: expected a case of {subject}, got none; {why}.")

    def read(self, index: int) -> CaseArrays:
        """The voxels of the case with that index, masks unpacked."""
        row = self.cases[index].row
        block = {name: array[row] for name, array in self._arrays.items()}
        masks = unpack_masks(block.pop("masks"), self.spec.slab[2])
        return CaseArrays(masks=masks, **block)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return open_arrays(self.path)


def open_arrays(path: Path, *, mode: Literal["r", "r+"] = "r") -> dict[str, Any]:
    """The Zarr arrays of a store by name, with rows along the first axis."""
    group = zarr.open_group(path, mode=mode)
    return {name: group[name] for name in ARRAYS}


def take_rows(
    array: Any, rows: Sequence[int], *, sessions: Sequence[int] | None = None
) -> np.ndarray[Any, Any]:
    """Some rows of a store's array in that order, and of its sessions, if it has any, some or all.

    What is not asked for is not decoded, chunk by chunk.
    """
    places = [rows]
    if sessions is not None and "session" in array.metadata.dimension_names:
        places.append(sessions)
    return np.asarray(array.get_orthogonal_selection(tuple(map(_span, places))))


def _span(places: Sequence[int]) -> slice | list[int]:
    """Neighbours as a slice, which is one request a shard."""
    first = places[0]
    if list(places) == list(range(first, first + len(places))):
        return slice(first, first + len(places))
    return list(places)


def open_store(path: Path | str) -> Store:
    """Open the store at `path`. Raises StoreError where there is none that this code can read."""
    path = Path(path)
    spec = _read_spec(path)
    _check_arrays(path, spec)
    table = _read_table(path)
    return Store(path, spec, table)


def create_arrays(path: Path, spec: StoreSpec, *, rows: int, rows_per_shard: int) -> None:
    """Create a group at `path` with empty arrays of `rows` cases, for conversion to fill."""
    group = zarr.create_group(path, attributes=group_attributes(spec))
    # Fast to read at a training step; zstd would save 8 % of the space at half the speed.
    compressor = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    for name, array in array_specs(spec.slab).items():
        group.create_array(
            name,
            shape=(rows, *array.shape),
            dtype=array.dtype,
            chunks=(1, *array.shape),
            shards=(rows_per_shard, *array.shape),
            compressors=compressor,
            fill_value=0,
            dimension_names=("case", *array.axes),
        )


def is_marked(path: Path) -> bool:
    """Whether a store of this project, of any schema or state, is at `path`."""
    try:
        return ATTRIBUTE in zarr.open_group(path, mode="r").attrs
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False


def _read_spec(path: Path) -> StoreSpec:
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path}: expected a Zarr 3 store, got none; run jobs/convert.py."
        ) from error
    attributes: Any = group.attrs.get(ATTRIBUTE)
    if not isinstance(attributes, dict):
        raise StoreError(f"{path}: expected a lesioncast store, got a Zarr group without its mark.")
    if attributes.get("schema") != SCHEMA:
        raise StoreError(
            f"{path}: expected schema {SCHEMA}, got {attributes.get('schema')}; convert it again."
        )
    try:
        slab, spacing = tuple(attributes["slab"]), tuple(attributes["spacing"])
        spec = StoreSpec(tuple(attributes["arms"]), slab, spacing)
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: its attributes lack {error}; convert it again.") from error
    if group_attributes(spec)[ATTRIBUTE] != attributes:
        raise StoreError(
            f"{path}: expected the sessions and channels of schema {SCHEMA}, "
            f"got {attributes}; convert it again."
        )
    return spec


def _check_arrays(path: Path, spec: StoreSpec) -> None:
    group = zarr.open_group(path, mode="r")
    for name, expected in array_specs(spec.slab).items():
        array: Any = group.get(name)
        got = "none" if array is None else f"{array.dtype} {list(array.shape[1:])}"
        if got != f"{expected.dtype} {list(expected.shape)}":
            raise StoreError(
                f"{path}: expected the array {name} as {expected.dtype} {list(expected.shape)} "
                f"a case, got {got}; convert it again."
            )


def _read_table(path: Path) -> CaseTable:
    table = path / CASE_TABLE
    try:
        return decode_table(table.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: expected {CASE_TABLE}, got none: its conversion did not finish; run it again."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{table}: expected a case table, got {error!r}; convert it again."
        ) from error
