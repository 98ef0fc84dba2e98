"""Convert a BIDS trial to a Zarr 3 store and write its cases back to NIfTI; see README.md.

Conversion (`storage.convert.convert`) and the Ray Data source (`storage.store.ray_datasource`) are
imported from their modules, so that reading a store needs no Ray.
"""

from storage.backends.backend import Location, parse_location
from storage.errors import CaseError, Exclusion, StorageError, StoreError
from storage.layout import (
    CHANNELS,
    MASKS,
    SESSIONS,
    StoreSpec,
    VisitSchedule,
    pack_masks,
    unpack_masks,
)
from storage.nifti.io import write_nifti_atomic
from storage.preprocess.grid import SlabGrid, to_source_grid
from storage.preprocess.prepare import CaseArrays
from storage.settings import StoreSettings, TrialLayout
from storage.store.case_table import Case, CaseTable
from storage.store.store import Store, open_store

__all__ = [
    "CHANNELS",
    "MASKS",
    "SESSIONS",
    "VisitSchedule",
    "Case",
    "CaseArrays",
    "CaseError",
    "CaseTable",
    "SlabGrid",
    "Location",
    "Exclusion",
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
