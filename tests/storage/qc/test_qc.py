"""Quality control: measurements of a case, its flags, and the report."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesioncast.jobs import qc as qc_job
from storage import Case, CaseArrays, Store, StoreSpec, VisitSchedule, open_store, pack_masks
from storage.errors import Exclusion
from storage.layout import CASE_TABLE
from storage.nifti.io import NiftiGeometry, as_matrix
from storage.preprocess.duplicates import fingerprint
from storage.preprocess.grid import SlabGrid
from storage.preprocess.visits import Intervals
from storage.qc.inspection import Inspection, inspect_case
from storage.qc.measure import CaseQuality, LesionStats, field_share, measure_case
from storage.qc.report import QcReport, write_qc_report
from storage.store.case_table import ShardRow
from tests.support import bids
from tests.support.store import SHARD, table_of, write_tiny_store

SLAB = (5, 24, 20)
SPACING = (3.0, 2.0, 2.0)
DEMO = Path(__file__).resolve().parents[3] / "jobs" / "configs" / "demo.yaml"
T2, GAD, NET2 = range(3)


def grid(**changes: Any) -> SlabGrid:
    affine = bids.Geometry(tilt=0).affine
    header = NiftiGeometry((20, 24, 9), as_matrix(affine), 1, 0, None, "mm")
    whole = SlabGrid(header, (9, 24, 20), SLAB, (1.0, 1.0, 1.0), (2.0, 0.0, 0.0))
    return replace(whole, **changes)


def sound_case() -> CaseArrays:
    """Return a head in the middle of its slab with two T2 lesions, one of them new at w048."""
    rng = np.random.default_rng(0)
    flair = np.full((3, *SLAB), -1, np.float16)
    head = rng.uniform(-0.9, 0.9, (5, 18, 14))
    flair[:, :, 3:21, 3:17] = head + rng.normal(0, 0.03, (3, 5, 18, 14)).clip(-0.09, 0.09)
    masks = np.zeros((3, 3, *SLAB), np.uint8)
    masks[:, T2, 2, 8:12, 5:7] = 1
    masks[1:, T2, 2, 14:16, 12:14] = 1
    masks[1, NET2, 2, 14:16, 12:14] = 1
    present = np.ones((3, 4), bool)
    present[0, 3] = False
    return CaseArrays(flair, masks, np.where(flair[1] > -1, 2, 0).astype(np.int16), present)


def measured(folder: Path, arrays: CaseArrays, *, slab_grid: SlabGrid | None = None) -> CaseQuality:
    case = bids.case_of(slab_grid or grid())
    store = stored(folder, [(case, arrays)])
    return measure_case(store, 0, store.read(0))


def stored(folder: Path, cases: list[tuple[Case, CaseArrays]], *excluded: Exclusion) -> Store:
    visits = VisitSchedule(("m00", "m12", "m24"), (0, 365, 730))
    spec = StoreSpec(bids.ARMS, SLAB, SPACING, visits)
    stored_cases = [
        replace(case, row=ShardRow(SHARD, index), present=arrays.present)
        for index, (case, arrays) in enumerate(cases)
    ]
    blocks = {
        "flair": np.stack([arrays.flair for _, arrays in cases]),
        "masks": pack_masks(np.stack([arrays.masks for _, arrays in cases])),
        "parcellation": np.stack([arrays.parcellation for _, arrays in cases]),
        "present": np.stack([arrays.present for _, arrays in cases]),
    }
    table = table_of(spec, stored_cases, bids="/data/trial", excluded=excluded)
    write_tiny_store(folder, table, blocks)
    return open_store(folder)


def test_sound_case_is_measured_and_raises_no_flag(tmp_path: Path) -> None:
    quality = measured(tmp_path, sound_case())
    assert quality.flags == ()
    assert (quality.orientation, quality.spacing, quality.shape) == ("RAS", (2, 2, 3), (20, 24, 9))
    assert (quality.in_field, quality.asymmetry) == (1, 0)
    assert quality.in_head == pytest.approx(18 * 14 / (24 * 20))
    assert quality.intensity["w096"] == (0, 900)
    voxel = 0.012  # ml
    assert quality.lesions["w000", "t2"] == LesionStats(pytest.approx(8 * voxel), 1)
    assert quality.lesions["w048", "t2"] == LesionStats(pytest.approx(12 * voxel), 2)
    assert quality.lesions["w048", "net2"] == LesionStats(pytest.approx(4 * voxel), 1)
    assert quality.lesions["w096", "gad"] == LesionStats(0, 0)
    assert ("w000", "net2") not in quality.lesions


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 1),
        ({"offset": (2.0, 0.0, -5.0)}, 15 / 20),
        ({"offset": (-1.0, 6.0, 0.0)}, 4 / 5 * 18 / 24),
        ({"scale": (1.0, 2.0, 1.0)}, 12 / 24),
        ({"scale": (1.0, 1.0, 0.5), "offset": (2.0, 0.0, 14.75)}, 10 / 20),
        ({"offset": (2.0, 0.0, 40.0)}, 0),
    ],
)
def test_field_share_of_shifted_and_scaled_grids(changes: dict[str, Any], share: float) -> None:
    assert field_share(grid(**changes)) == pytest.approx(share)


def remove_left_half(a: CaseArrays) -> None:
    a.flair[:, :, :, :9] = -1


def keep_one_slice(a: CaseArrays) -> None:
    a.flair[:, 1:] = -1


def fill_the_slab(a: CaseArrays) -> None:
    air = a.flair == -1
    a.flair[air] = np.random.default_rng(1).uniform(-0.95, -0.9, air.sum())


def strip_w000(a: CaseArrays) -> None:
    a.flair[0, :, [3, 4, 19, 20]] = -1
    a.flair[0, :, :, [3, 4, 15, 16]] = -1


def clip_w000(a: CaseArrays) -> None:
    a.flair[0, 0, 3:21, 3:17] = 1


def swap_subject(a: CaseArrays) -> None:
    other = np.random.default_rng(7).uniform(-0.9, 0.9, (5, 18, 14))
    a.flair[1, :, 3:21, 3:17] = other


def remove_a_lesion(a: CaseArrays) -> None:
    a.masks[2, T2, 2, 8:12] = 0


def empty_t2(a: CaseArrays) -> None:
    a.masks[2, T2] = 0


def put_lesion_off_the_head(a: CaseArrays) -> None:
    a.masks[2, NET2, 2, 0:3, 0:3] = 1
    a.masks[2, T2, 2, 0:3, 0:3] = 1


def repeat_the_image(a: CaseArrays) -> None:
    a.flair[2] = np.clip(a.flair[1].astype(np.float32) * 1.002, -1, 1)


def repeat_net2(a: CaseArrays) -> None:
    a.masks[1:, NET2, 2, 14:17, 11:14] = 1


def take_t2_for_net2(a: CaseArrays) -> None:
    a.masks[1, NET2] = a.masks[1, T2]


def mirror_net2(a: CaseArrays) -> None:
    a.masks[1, NET2] = a.masks[1, NET2, :, :, ::-1]


def move_labels_off_the_head(a: CaseArrays) -> None:
    a.parcellation[:] = np.where(a.flair[1] > -1, 0, 2)


@pytest.mark.parametrize(
    ("harm", "flag"),
    [
        (remove_left_half, "more head on the right (75%)"),
        (keep_one_slice, "head fills 10% of the slab"),
        (fill_the_slab, "m12: head fills 100% of the slab"),
        (strip_w000, "head differs: 29% of the slab at m00, 52% at m12"),
        (clip_w000, "m00: intensity clipped"),
        (swap_subject, "m00 and m12 look unlike (r = "),
        (remove_a_lesion, "T2 falls from 0.1 ml at m12 to 0.0 ml at m24"),
        (empty_t2, "m24: T2 mask empty"),
        (put_lesion_off_the_head, "m24: NET2 100% outside the head"),
        (repeat_the_image, "m12 and m24 are almost the same image"),
        (repeat_net2, "m12 NET2 and m24 NET2 are the same mask"),
        (take_t2_for_net2, "m12 T2 and m12 NET2 are the same mask"),
        (mirror_net2, "m12: NET2 0% inside T2"),
        (move_labels_off_the_head, "parcellation off the head"),
    ],
)
def test_each_defect_raises_its_flag(
    tmp_path: Path, harm: Callable[[CaseArrays], None], flag: str
) -> None:
    arrays = sound_case()
    harm(arrays)
    assert any(raised.startswith(flag) for raised in measured(tmp_path, arrays).flags)


def test_slab_outside_the_field_of_view_is_flagged(tmp_path: Path) -> None:
    quality = measured(tmp_path, sound_case(), slab_grid=grid(offset=(2.0, 0.0, -8.0)))
    assert quality.flags == ("field covers 60% of the slab",)


def test_absent_inputs_raise_no_flag(tmp_path: Path) -> None:
    """Two sessions of FLAIR and nothing else, as in much real data."""
    arrays = sound_case()
    arrays.present[:, 1:] = False
    arrays.present[2] = False
    arrays.masks[:] = 0
    arrays.flair[2] = 0
    quality = measured(tmp_path, arrays)
    assert quality.flags == ()
    assert quality.lesions == {}
    assert set(quality.clipped) == {"w000", "w048"}


def report_of(store: Store, folder: Path) -> QcReport:
    inspections = (inspect_case(store, index) for index in range(len(store.cases)))
    return write_qc_report(inspections, store.table, folder)


def test_table_has_a_row_for_each_case_and_flagged_ones_come_first(tmp_path: Path) -> None:
    bad = sound_case()
    empty_t2(bad)
    cases = [
        replace(bids.case_of(grid(), index=i, subject=f"sub-{i}"), intervals=Intervals(340.0))
        for i in range(2)
    ]
    store = stored(tmp_path / "store", list(zip(cases, (sound_case(), bad), strict=True)))
    head, *rows = (
        line.split("\t") for line in report_of(store, tmp_path).sheet.read_text().splitlines()
    )
    assert {len(row) for row in rows} == {len(head)}
    first = dict(zip(head, rows[0], strict=True))
    assert first["subject"] == "sub-1"
    assert "m24: T2 mask empty" in first["flags"]
    assert (first["m12_t2_ml"], first["m12_t2_count"]) == ("0.1440", "2")
    assert (first["m00_net2_ml"], first["m00_low"], first["spacing"]) == ("n/a", "0", "2x2x3")
    assert (first["days_to_current"], first["days_to_outcome"]) == ("340", "n/a")
    assert dict(zip(head, rows[1], strict=True))["flags"] == "n/a"


def test_subjects_with_one_image_are_flagged(tmp_path: Path) -> None:
    image = fingerprint(sound_case().flair[1])
    cases = [
        replace(bids.case_of(grid(), index=i, subject=f"sub-{i}"), fingerprints={session: image})
        for i, session in enumerate(("w000", "w048"))
    ]
    store = stored(tmp_path / "store", [(case, sound_case()) for case in cases])
    report = report_of(store, tmp_path)
    flags = [line.split("\t")[1] for line in report.sheet.read_text().splitlines()[1:]]
    assert flags == ["m00 is the image of sub-1 at m12", "m12 is the image of sub-0 at m00"]
    assert (report.cases, report.flagged) == (2, 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_qc_job_writes_page_table_and_pictures(tmp_path: Path) -> None:
    cases = [(bids.case_of(grid(), index=i, subject=f"sub-{i}"), sound_case()) for i in range(3)]
    store, out = tmp_path / "store", tmp_path / "qc"
    stored(store, cases)
    flags = ["--config", str(DEMO), "--store", str(store)]
    assert qc_job.main([*flags, "--out", str(out)]) == 0
    (pictures,) = (path for path in out.iterdir() if path.is_dir())
    assert names(out) == sorted(
        [pictures.name, "qc.html", "qc.tsv"]
        + [f"000{i}_sub-{i}.{suffix}" for i in range(3) for suffix in ("jpg", "png")]
    )
    assert pictures.name in (out / "qc.html").read_text()
    (store / CASE_TABLE).write_text(json.dumps({}))
    assert qc_job.main(flags) == 1


def test_a_report_keeps_its_pictures_until_another_replaces_it(tmp_path: Path) -> None:
    cases = [(bids.case_of(grid(), index=i, subject=f"sub-{i}"), sound_case()) for i in range(2)]
    out = tmp_path / "qc"
    report_of(stored(tmp_path / "one", cases), out)
    page, before = (out / "qc.html").read_text(), names(out)
    (out / "notes.txt").write_text("of a reader")

    def killed(store: Store) -> Iterator[Inspection]:
        yield inspect_case(store, 0)
        raise KeyboardInterrupt

    changed = stored(tmp_path / "two", cases[:1])
    with pytest.raises(KeyboardInterrupt):
        write_qc_report(killed(changed), changed.table, out)
    assert (out / "qc.html").read_text() == page
    assert set(before) <= set(names(out))

    report_of(changed, out)
    (pictures,) = (path.name for path in out.iterdir() if path.is_dir())
    assert pictures not in before
    assert names(out) == sorted(
        ["0000_sub-0.jpg", "0000_sub-0.png", "notes.txt", pictures, "qc.html", "qc.tsv"]
    )
