"""Lesions that the slab or its voxels lose are counted, and no case becomes inactive by a loss."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lesioncast.evaluation.features.outcomes import cases_with_outcome, source_lesions
from storage import Case, Store
from storage.convert.summary import summarise
from storage.convert.verify import verify
from storage.layout import CONNECTIVITY_26, MASKS, SESSIONS
from storage.preprocess.lesions import LesionTransfer
from storage.qc.measure import measure_case
from storage.settings import StoreSettings
from tests.storage.convert.conversion import converted
from tests.support import bids

Array = bids.Array
NET2 = MASKS.index("net2")
TALL = bids.Geometry((30, 24, 20), tilt=0)
CENTRAL = StoreSettings((5, 24, 20), (3.0, 2.0, 2.0), resample=False)
FINE = bids.Geometry((9, 90, 90), (3.0, 1.0, 1.0), tilt=0)
COARSE = StoreSettings((7, 30, 30), (3.0, 3.0, 3.0), resample=True)
VOXEL_MM3 = 12.0


def write_subject(root: Path, name: str, geometry: bids.Geometry, net2: Array) -> None:
    """Write FLAIR at all sessions and NET2 at outcome."""
    for k, session in enumerate(SESSIONS):
        path = bids.path_of(root, name, session, "flair")
        bids.write_volume(path, bids.head(geometry.shape, 10 * int(name[-2:]) + k), geometry)
    bids.write_volume(bids.path_of(root, name, "w096", "net2"), net2, geometry)


def lesion(*slices: slice) -> Array:
    mask = np.zeros(TALL.shape, np.uint8)
    for part in slices:
        mask[part, 10:13, 8:11] = 1
    return mask


LESIONS = {
    "sub-01": lesion(slice(25, 28)),  # above the slab, which takes slices 12 to 16
    "sub-02": lesion(slice(14, 16), slice(25, 28)),
    "sub-03": lesion(slice(15, 19)),  # cut by the upper border
    "sub-04": lesion(),
    "sub-05": lesion(slice(14, 16)),
}


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("tall")
    bids.write_participants(root / "bids", dict.fromkeys(LESIONS, "placebo"))
    for name, net2 in LESIONS.items():
        write_subject(root / "bids", name, TALL, net2)
    return converted(root / "bids", root / "store.zarr", settings=CENTRAL)[0]


def case_of(store: Store, name: str) -> Case:
    return next(case for case in store.cases if case.subject == name)


def transfer_of(store: Store, name: str) -> LesionTransfer:
    return case_of(store, name).lesions["w096/net2"]


def test_lesions_outside_the_slab_are_counted_beside_those_on_it(tall: Store) -> None:
    lost = 27 * VOXEL_MM3
    assert transfer_of(tall, "sub-01") == LesionTransfer(
        source_count=1, source_mm3=lost, outside_count=1, outside_mm3=lost
    )
    assert transfer_of(tall, "sub-02") == LesionTransfer(
        source_count=2, source_mm3=lost + 18 * VOXEL_MM3, grid_count=1, grid_mm3=18 * VOXEL_MM3,
        outside_count=1, outside_mm3=lost,
    )  # fmt: skip
    assert transfer_of(tall, "sub-04") == LesionTransfer()
    assert transfer_of(tall, "sub-05").lost_count == 0


def test_a_lesion_that_the_border_cuts_is_kept_and_its_part_beyond_is_measured(
    tall: Store,
) -> None:
    transfer = transfer_of(tall, "sub-03")
    assert (transfer.grid_count, transfer.lost_count, transfer.cut_count) == (1, 0, 1)
    assert (transfer.grid_mm3, transfer.outside_mm3) == (18 * VOXEL_MM3, 18 * VOXEL_MM3)


def test_a_case_that_lost_every_new_lesion_has_no_outcome(tall: Store) -> None:
    usable = [case.subject for case in cases_with_outcome(tall.cases)]
    assert usable == ["sub-02", "sub-03", "sub-04", "sub-05"]
    splits = {case.subject: case.split for case in tall.cases}
    assert [name for name, split in splits.items() if split == "unlabelled"] == ["sub-01"]
    np.testing.assert_array_equal(source_lesions(tall.cases), [1, 2, 1, 0, 1])


def test_summary_and_list_of_exclusions_name_the_case_and_the_reason(tall: Store) -> None:
    lines = summarise(tall.table)
    total = "w096 net2: 2 of 5 lesions (2 outside the slab, 0 smaller than a voxel) in 2 cases"
    assert f"  {total}" in lines
    reason = "expected new lesions on the slab, got none of 1 (324 mm3): 1 outside the slab"
    assert any(line.startswith(f"  sub-01, ses-w096: {reason}") for line in lines)
    _, row = (Path(tall.path) / "excluded.tsv").read_text().splitlines()
    assert row.startswith(f"sub-01\tw096\toutcome lost\t{reason}")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sub-01", ["w096: NET2 1 of 1 lesions lost (1 outside the slab)"]),
        ("sub-02", []),
        ("sub-05", []),
    ],
)
def test_quality_control_flags_masks_that_lost_most_lesions(
    tall: Store, name: str, flags: list[str]
) -> None:
    case = case_of(tall, name)
    quality = measure_case(tall, case.index, tall.read(case.index))
    assert [flag for flag in quality.flags if "lost" in flag] == flags
    assert quality.transfers["w096", "net2"] == case.lesions["w096/net2"]


def test_lesions_smaller_than_a_voxel_are_counted_as_lost(tmp_path: Path) -> None:
    net2 = np.zeros(FINE.shape, np.uint8)
    rng = np.random.default_rng(0)
    for h in range(20, 74, 9):
        for w in range(25, 65, 9):
            dh, dw = rng.integers(0, 3, 2)
            net2[2 + 2 * (h % 2), h + dh, w + dw : w + dw + 1 + w % 2] = 1
    bids.write_participants(tmp_path / "bids", {"sub-01": "placebo"})
    write_subject(tmp_path / "bids", "sub-01", FINE, net2)
    store, _ = converted(tmp_path / "bids", tmp_path / "store.zarr", settings=COARSE)
    transfer, mask = transfer_of(store, "sub-01"), store.read(0).masks[2, NET2]
    kept = ndimage.label(mask, CONNECTIVITY_26)[1]
    assert (transfer.source_count, transfer.source_mm3) == (30, 3 * net2.sum())
    assert (transfer.grid_count, transfer.grid_mm3) == (kept, 27 * mask.sum())
    assert transfer.resampling_count == 30 - kept > 15
    assert transfer.outside_count == 0
    assert any("smaller than a voxel) in 1 case" in line for line in summarise(store.table))
    assert store.cases[0].has_outcome


def test_losses_are_in_the_case_table_and_verified(tall: Store) -> None:
    assert list(verify(tall, Path(tall.table.bids))) == []
