"""Export cases of a store to the grids of their source files, as a BIDS derivative."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from storage.errors import StoreError
from storage.export.bids_derivative import (
    sidecar_path,
    write_dataset_description,
    write_json,
)
from storage.export.bids_names import DerivedNames, derived_names
from storage.layout import BACKGROUND, CHANNELS, CURRENT, MASKS, OUTCOME, SESSIONS
from storage.nifti.io import image_like, write_nifti_atomic
from storage.preprocess.grid import to_source_grid
from storage.preprocess.prepare import CaseArrays
from storage.store.case_table import Case
from storage.store.store import Store
from storage.trial.dataset import REFERENCE_FLAIR

PARCELLATION = f"{CURRENT}/parcellation"
CHANNEL_NAMES = (
    *(f"{session}/{channel}" for session in SESSIONS for channel in CHANNELS),
    PARCELLATION,
)
README = """Cases of a lesioncast store on the grids of their subjects' own current FLAIR.

Masks, labels and normalised FLAIR of the slab that the store holds. Outside the slab masks and
labels are 0 and FLAIR is -1, as outside the head. If Resampled is false, every voxel is a voxel of
the store. Otherwise FLAIR was interpolated linearly and masks took the nearest voxel. Sidecars name
the source files of a case and their sha256. Research use only."""

write_export_root = partial(
    write_dataset_description,
    name="lesioncast store on source grids",
    description="Slabs resampled onto the grids from which they were cut.",
    readme=README,
    ignored=("dicom/",),
)


@dataclass(frozen=True)
class BidsEntities:
    """BIDS name of a channel: entities and suffix, with the content of its sidecar."""

    entities: Mapping[str, str]
    suffix: str
    sidecar: Mapping[str, Any]


def _lesions(name: str, description: str) -> BidsEntities:
    """Return the BIDS name of a lesion mask."""
    sidecar = {"Type": "Lesion", "Description": description}
    return BidsEntities({"space": "orig", "label": "L", "desc": name}, "mask", sidecar)


BIDS_ENTITIES = {
    "flair": BidsEntities(
        {"space": "orig", "desc": "normalised"},
        "FLAIR",
        {"Description": "FLAIR scaled to [-1, 1] by percentiles of its foreground."},
    ),
    "t2": _lesions("T2", "T2 lesions."),
    "gad": _lesions("Gad", "Gadolinium-enhancing lesions."),
    "net2": _lesions("NET2", "T2 lesions that are new or larger since the previous session."),
    "parcellation": BidsEntities(
        {"space": "orig", "desc": "parcellation"}, "dseg", {"Description": "FreeSurfer labels."}
    ),
}


def has_channel(case: Case, name: str) -> bool:
    """Return whether a case has the channel `name`, such as w096/net2 or w048/parcellation."""
    if name not in CHANNEL_NAMES:
        raise StoreError(f"expected names such as {OUTCOME}/net2 or {PARCELLATION}, got {name}.")
    session, channel = name.split("/")
    if name == PARCELLATION:
        return case.parcellation
    return bool(case.present[SESSIONS.index(session), CHANNELS.index(channel)])


def exported_path(root: Path, names: DerivedNames, channel_name: str) -> Path:
    """Return the path of a channel such as w096/net2 in the derivative at `root`."""
    session, channel = channel_name.split("/")
    kind = BIDS_ENTITIES[channel]
    return root / names.path(session, kind.suffix, **kind.entities)


def source_image(arrays: CaseArrays, case: Case, name: str) -> nib.Nifti1Image:
    """Return a volume of a case on the grid of its current FLAIR, with affine and codes."""
    session, channel = name.split("/")
    k = SESSIONS.index(session)
    if channel == "parcellation":
        return to_source_grid(arrays.parcellation, case.grid, order=0)
    if channel in MASKS:
        return to_source_grid(arrays.masks[k, MASKS.index(channel)], case.grid, order=0)
    image = to_source_grid(arrays.flair[k].astype(np.float32), case.grid, order=1)
    inside = to_source_grid(np.ones(case.grid.slab, bool), case.grid, order=0)
    data = np.where(inside.dataobj, image.dataobj, np.float32(BACKGROUND))
    return image_like(case.grid.header, data)


def export_case(store: Store, case: Case, names: Sequence[str], root: Path) -> list[Path]:
    """Write those of `names` that a case has, each with its sidecar; return the paths of images."""
    arrays, derived = store.read(case.index), derived_names(case, store.spec.visits)
    paths = []
    for name in filter(partial(has_channel, case), names):
        path = exported_path(root, derived, name)
        record = _sidecar(case, name, derived)
        if name.endswith("/flair"):
            record["SkullStripped"] = store.cleared_by_brain_mask(case)
        write_json(sidecar_path(path), record)
        write_nifti_atomic(source_image(arrays, case, name), path)
        paths.append(path)
    return paths


def _sidecar(case: Case, name: str, names: DerivedNames) -> dict[str, Any]:
    return {
        **BIDS_ENTITIES[name.split("/")[1]].sidecar,
        "Sources": [names.uri(role) for role in (name,) if role in case.sources],
        "SpatialReference": names.uri(REFERENCE_FLAIR),
        "Resampled": not case.grid.is_crop,
        "CaseDigest": case.digest,
        "SourceDigests": dict(case.digests),
        "ResearchUseOnly": True,
    }
