"""Export cases to the grids of their source files, as a valid BIDS derivative."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from storage import (
    Case,
    CaseArrays,
    StoreError,
    StoreSettings,
    VisitSchedule,
    write_nifti_atomic,
)
from storage.export.bids_derivative import sidecar_path
from storage.export.bids_names import derived_names
from storage.export.export import (
    CHANNEL_NAMES,
    export_case,
    exported_path,
    has_channel,
    source_image,
    write_export_root,
)
from storage.nifti.io import read_volume
from storage.preprocess.grid import place_slab, to_slab
from storage.store.store import Store
from storage.trial.dataset import SourceFile
from tests.support import bids
from tests.support.bids_validator import validator_reports
from tests.support.forecast import write_store

# All orientations of a file's three axes.
ORIENTATIONS = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for letters in itertools.product(*axes)
]
GRIDS = {
    "crop": StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False),
    "finer": StoreSettings((19, 37, 30), (1.5, 1.0, 1.0), resample=True),
}


def case_from_file(path: Path, settings: StoreSettings) -> tuple[bids.Case, CaseArrays]:
    """Return a case whose parcellation, w096 NET2 and w000 FLAIR come from one file."""
    volume = read_volume(SourceFile("sub-01", "w048", "flair", path))
    grid = place_slab(volume, settings=settings, brain=None)
    labels = to_slab(volume.data, grid, order=0)
    masks = np.zeros((3, 3, *grid.slab), np.uint8)
    masks[2, 2] = labels > 500
    flair = np.full((3, *grid.slab), -1, np.float16)
    flair[0] = labels / 1000
    present = np.ones((3, 4), bool)
    return bids.case_of(grid), CaseArrays(flair, masks, labels, present)


@pytest.mark.parametrize("grid", GRIDS)
def test_all_48_orientations_are_exported_voxel_by_voxel(grid: str, tmp_path: Path) -> None:
    assert len(set(ORIENTATIONS)) == 48
    head = bids.head((9, 18, 14), 1)
    for axes in ORIENTATIONS:
        path = tmp_path / f"{axes}.nii.gz"
        bids.write_volume(path, head, bids.Geometry(axes=axes))
        source, (case, arrays) = nib.load(path), case_from_file(path, GRIDS[grid])
        assert case.grid.is_crop == (grid == "crop")
        values = np.asarray(source.dataobj)
        inside = np.ones(case.grid.slab, np.int16)
        in_slab = np.asarray(
            source_image(
                CaseArrays(arrays.flair, arrays.masks, inside, arrays.present),
                case,
                "w048/parcellation",
            ).dataobj
        ).astype(bool)
        assert in_slab.sum() == (5 * 12 * 14 if grid == "crop" else in_slab.size)
        for name, expected in (
            ("w048/parcellation", np.where(in_slab, values, 0)),
            ("w096/net2", np.where(in_slab, values > 500, 0)),
            ("w000/flair", np.where(in_slab, (values / 1000).astype(np.float16), -1)),
        ):
            out = tmp_path / "out" / f"{axes}.nii.gz"
            write_nifti_atomic(source_image(arrays, case, name), out)
            exported = nib.load(out)
            if name != "w000/flair" or grid == "crop":  # images are interpolated, labels are not
                np.testing.assert_array_equal(exported.dataobj, expected, err_msg=f"{axes} {name}")
            np.testing.assert_array_equal(exported.affine, source.affine)
            np.testing.assert_allclose(exported.get_qform(), source.get_qform(), atol=1e-5)
            for field in ("sform_code", "qform_code", "xyzt_units"):
                assert exported.header[field] == source.header[field]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("export")
    return write_store(folder / "store.zarr", folder / "bids", test=2)


def test_export_is_a_valid_bids_derivative(store: Store, tmp_path: Path) -> None:
    write_export_root(tmp_path, source=store.table.bids)
    for case in store.cases:
        paths = export_case(store, case, CHANNEL_NAMES, tmp_path)
        assert paths == [
            exported_path(tmp_path, derived_names(case, VisitSchedule()), name)
            for name in CHANNEL_NAMES
            if has_channel(case, name)
        ]
        assert len(paths) == 11
    assert validator_reports(tmp_path) == {"own": []}
    names = derived_names(store.case("sub-02"), VisitSchedule())
    path = exported_path(tmp_path, names, "w096/net2")
    assert path.name == "sub-02_ses-w096_space-orig_label-L_desc-NET2_mask.nii.gz"
    image = nib.load(path)
    assert (image.get_data_dtype(), np.asarray(image.dataobj).sum()) == (np.uint8, 4)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Resampled"] is False
    assert "SkullStripped" not in sidecar
    assert sidecar["CaseDigest"] == store.case("sub-02").digest
    assert sidecar["SpatialReference"].endswith("sub-02/ses-w048/anat/sub-02_ses-w048_FLAIR.nii.gz")


def test_absent_channels_are_skipped_and_unknown_names_are_refused(
    store: Store, tmp_path: Path
) -> None:
    case = store.cases[0]
    absent = ["w000/net2", "w048/parcellation"]
    assert export_case(store, case, absent, tmp_path) == []
    with pytest.raises(StoreError, match=r"such as w096/net2 or w048/parcellation, got w096/t1"):
        export_case(store, case, ["w096/t1"], tmp_path)


def test_flair_is_skull_stripped_if_a_brain_mask_was_applied(store: Store, tmp_path: Path) -> None:
    def skull_stripped(case: Case, *, applied: bool) -> bool:
        settings = replace(store.settings, apply_brain_mask=applied)
        changed = replace(store, table=replace(store.table, settings=settings))
        (path,) = export_case(changed, case, ["w048/flair"], tmp_path)
        return json.loads(sidecar_path(path).read_text())["SkullStripped"]

    case = store.cases[0]
    assert not skull_stripped(case, applied=True)
    name = "masks/of any name.nii"
    sources = {**case.sources, "w048/brain_mask": name}
    masked = replace(case, sources=sources, digests={**case.digests, name: "0" * 64})
    assert skull_stripped(masked, applied=True)
    assert not skull_stripped(masked, applied=False)
