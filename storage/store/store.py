"""Open a store, which is where it is checked, and read cases from it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage.backends.backend import Location, StoreBackend
from storage.backends.local import open_backend
from storage.errors import StoreError
from storage.layout import (
    CASE_TABLE,
    ROOT_ATTRIBUTE,
    ROOT_METADATA,
    StoreSpec,
    channel_index,
    root_attributes,
    shard_paths,
    shard_record_path,
    unpack_masks,
)
from storage.preprocess.prepare import CaseArrays
from storage.store.array_reader import ShardedArray, open_arrays, read_rows
from storage.store.case_table import Case, CaseTable, decode_table


@dataclass(frozen=True)
class Store:
    """A store that has been checked: `spec` for all cases, `cases` in the order of their index."""

    path: Location
    table: CaseTable

    @property
    def spec(self) -> StoreSpec:
        return self.table.spec

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
        refused = [str(refusal) for refusal in self.table.excluded if refusal.subject == subject]
        why = f"it was refused: {refused[0]}" if refused else f"it holds {len(self.cases)} others"
        raise StoreError(f"{self.path}: expected a case of {subject}, got none; {why}.")

    def read(self, index: int) -> CaseArrays:
        """The voxels of the case with that index, masks unpacked.

        Raises StoreError where its files are not as they were written.
        """
        row = self.cases[index].row
        block = {name: read_rows(array, [row])[0] for name, array in self._arrays.items()}
        masks = unpack_masks(block.pop("masks"), self.spec.slab[2])
        return CaseArrays(masks=masks, **block)

    @cached_property
    def _arrays(self) -> dict[str, ShardedArray]:
        return open_arrays(self.path)


def open_store(path: Location, *, inputs: str | None = None) -> Store:
    """Open the store at `path`, a folder or the URL of an object store's prefix.

    `inputs` is the digest of the table in which indices were found that are to count in this one.
    Raises StoreError where there is none that this code can read, where a file of it is missing,
    or where it was converted anew since then.
    """
    place = open_backend(path)
    _check_root(place)
    table = read_table(place)
    _check_files(place, table)
    if inputs is not None and inputs != table.inputs:
        raise StoreError(
            f"{place.location}: expected the cases of {inputs[:12]}, got {table.inputs[:12]}: "
            "it was converted anew meanwhile; run the same command again."
        )
    return Store(place.location, table)


def is_lesioncast_store(place: StoreBackend) -> bool:
    """Whether a store of this project, of any schema or state, is there."""
    try:
        return isinstance(_read_root_attribute(place), dict)
    except StoreError:
        return False


def _read_root_attribute(place: StoreBackend) -> Any:
    try:
        return json.loads(place.read(ROOT_METADATA))["attributes"].get(ROOT_ATTRIBUTE)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{place.location}: expected a Zarr 3 store, got none; run jobs/convert.py."
        ) from error


def _check_root(place: StoreBackend) -> None:
    mark = _read_root_attribute(place)
    if not isinstance(mark, dict):
        raise StoreError(
            f"{place.location}: expected a lesioncast store, got a Zarr group without its mark."
        )
    for key, value in root_attributes()[ROOT_ATTRIBUTE].items():
        if mark.get(key) != value:
            raise StoreError(
                f"{place.location}: expected {key} {value}, got {mark.get(key)}; convert it again."
            )


def read_table(place: StoreBackend) -> CaseTable:
    """The case table, which makes the files a store. Raises StoreError where there is none."""
    try:
        return decode_table(place.read(CASE_TABLE))
    except FileNotFoundError as error:
        raise StoreError(
            f"{place.location}: expected {CASE_TABLE}, got none: its conversion did not finish; "
            "run it again."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{place.location}/{CASE_TABLE}: expected a case table, got {error!r}; "
            "convert it again."
        ) from error


def _check_files(place: StoreBackend, table: CaseTable) -> None:
    filled = {case.row.shard for case in table.cases}
    needed = {shard_record_path(shard) for shard in table.shards}
    needed |= {file for shard in filled for file in shard_paths(shard, table.spec.slab)}
    if missing := sorted(needed - place.list_files()):
        raise StoreError(
            f"{place.location}: expected all files of its shards, got none at {missing[0]}"
            f" and {len(missing) - 1} others; convert it again: only what is missing is made."
        )
