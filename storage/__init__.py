"""From a BIDS trial to a Zarr 3 store and back onto NIfTI: see README.md in this folder.

Conversion (`storage.convert`) and the Ray Data source (`storage.source`) are imported from their
modules, so that reading a store needs no Ray.
"""

from storage.cases import Case, CaseTable
from storage.errors import CaseError, Refusal, StorageError, StoreError
from storage.grid import Grid, to_source_grid
from storage.layout import CHANNELS, MASKS, SESSIONS, StoreSpec, pack_masks, unpack_masks
from storage.nifti import write_nifti_atomic
from storage.place import Location, parse_location
from storage.prepare import CaseArrays
from storage.settings import StoreSettings, TrialLayout
from storage.store import Store, open_store

__all__ = [
    "CHANNELS",
    "MASKS",
    "SESSIONS",
    "Case",
    "CaseArrays",
    "CaseError",
    "CaseTable",
    "Grid",
    "Location",
    "Refusal",
    "StorageError",
    "Store",
    "StoreError",
    "StoreSettings",
    "StoreSpec",
    "TrialLayout",
    "open_store",
    "pack_masks",
    "parse_location",
    "to_source_grid",
    "unpack_masks",
    "write_nifti_atomic",
]
