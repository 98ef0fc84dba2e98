"""Open and check a store, and read cases from it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from storage.backends.backend import Location, StoreBackend
from storage.backends.open import open_backend
from storage.errors import StoreError
from storage.layout import (
    CASE_TABLE,
    CURRENT,
    ROOT_ATTRIBUTE,
    ROOT_METADATA,
    SCHEMA,
    StoreSpec,
    channel_index,
    root_attributes,
    shard_paths,
    shard_record_path,
    unpack_masks,
)
from storage.preprocess.prepare import CaseArrays
from storage.settings import StoreSettings
from storage.store.array_reader import ShardedArray, open_arrays, read_rows
from storage.store.case_table import Case, CaseTable, decode_table


@dataclass(frozen=True)
class Store:
    """A checked store; `cases` are in the order of their index."""

    path: Location
    table: CaseTable

    @property
    def spec(self) -> StoreSpec:
        return self.table.spec

    @property
    def settings(self) -> StoreSettings:
        """Return the settings with which the store was converted."""
        return self.table.settings

    @property
    def cases(self) -> tuple[Case, ...]:
        return self.table.cases

    def select(
        self, *, split: str | None = None, arm: str | None = None, having: Sequence[str] = ()
    ) -> list[Case]:
        """Return the cases of a split (train, val, test, unlabelled) and of an arm, or of all.

        `having` names channels that a case must have, such as w096/net2.
        """
        channels = [channel_index(name) for name in having]
        return [
            case
            for case in self.cases
            if split in (None, case.split)
            and arm in (None, case.arm)
            and all(case.present[channel] for channel in channels)
        ]

    def case(self, subject: str) -> Case:
        """Return the case of a subject. Raises StoreError if there is none, with the reason."""
        for case in self.cases:
            if case.subject == subject:
                return case
        excluded = [str(reason) for reason in self.table.excluded if reason.subject == subject]
        why = (
            f"it was excluded: {excluded[0]}" if excluded else f"it holds {len(self.cases)} others"
        )
        raise StoreError(f"{self.path}: expected a case of {subject}, got none; {why}.")

    def cleared_by_brain_mask(self, case: Case) -> bool:
        """Return whether conversion set the FLAIR of a case to -1 outside a brain mask."""
        return self.settings.apply_brain_mask and f"{CURRENT}/brain_mask" in case.sources

    def read(self, index: int) -> CaseArrays:
        """Return the voxels of the case with that index, masks unpacked.

        Raises StoreError if its files are missing or damaged.
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

    `inputs` is the `CaseTable.inputs` of an earlier opening: the store must still be the same one,
    so that case indices from then are valid. Raises StoreError if there is no store that this code
    can read, if one of its files is missing, or if it was converted again since `inputs` was noted.
    """
    backend = open_backend(path)
    _check_root(backend)
    table = read_table(backend)
    _check_files(backend, table)
    if inputs is not None and inputs != table.inputs:
        raise StoreError(
            f"{backend.location}: expected the cases of {inputs[:12]}, got {table.inputs[:12]}: "
            "it was converted anew meanwhile; run the same command again."
        )
    return Store(backend.location, table)


def is_lesioncast_store(backend: StoreBackend) -> bool:
    """Return whether a store of this project exists, of any schema or state."""
    try:
        return isinstance(_read_root_attribute(backend), dict)
    except StoreError:
        return False


def _read_root_attribute(backend: StoreBackend) -> Any:
    try:
        return json.loads(backend.read(ROOT_METADATA))["attributes"].get(ROOT_ATTRIBUTE)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError) as error:
        raise StoreError(
            f"{backend.location}: expected a Zarr 3 store, got none; run jobs/convert.py."
        ) from error


def _check_root(backend: StoreBackend) -> None:
    """Require the root attributes of this version."""
    attribute = _read_root_attribute(backend)
    if not isinstance(attribute, dict):
        raise StoreError(
            f"{backend.location}: expected a lesioncast store, got another Zarr group; "
            "choose another path."
        )
    if attribute.get("schema") != SCHEMA:
        raise StoreError(
            f"{backend.location}: expected a store of schema {SCHEMA}, got schema "
            f"{attribute.get('schema')} of another version of lesioncast; make it again with "
            "jobs/convert.py."
        )
    for key, value in root_attributes()[ROOT_ATTRIBUTE].items():
        if attribute.get(key) != value:
            raise StoreError(
                f"{backend.location}: expected {key} {value}, got {attribute.get(key)}; "
                "convert it again."
            )


def read_table(backend: StoreBackend) -> CaseTable:
    """Return the case table. Raises StoreError if the store has none or a damaged one."""
    try:
        return decode_table(backend.read(CASE_TABLE))
    except FileNotFoundError as error:
        raise StoreError(
            f"{backend.location}: expected {CASE_TABLE}, got none: its conversion did not finish; "
            "run it again."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{backend.location}/{CASE_TABLE}: expected a case table, got {error!r}; "
            "convert it again."
        ) from error


def _check_files(backend: StoreBackend, table: CaseTable) -> None:
    """Require every file of the current shards."""
    with_cases = {case.row.shard for case in table.cases}
    needed = {shard_record_path(shard) for shard in table.shards}
    needed |= {file for shard in with_cases for file in shard_paths(shard, table.spec.slab)}
    if missing := sorted(needed - backend.list_files()):
        raise StoreError(
            f"{backend.location}: expected all files of its shards, got no file at {missing[0]}"
            f" and {len(missing) - 1} others; convert it again: only missing shards are built."
        )
