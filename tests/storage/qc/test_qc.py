"""Quality control: measurements of a case, its flags, and the report."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lesioncast.jobs import qc as qc_job
from storage import Case, CaseArrays, Store, StoreSpec, open_store, pack_masks
from storage.errors import Exclusion
from storage.layout import CASE_TABLE
from storage.nifti.io import NiftiGeometry, as_matrix
from storage.preprocess.duplicates import fingerprint
from storage.preprocess.grid import SlabGrid
from storage.qc.measure import CaseQuality, LesionStats, field_share, measure_case
from storage.qc.report import write_qc_report
from storage.qc.thumbnail import COLOURS
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
    return measure_case(stored(folder, [(case, arrays)]), 0)


def stored(folder: Path, cases: list[tuple[Case, CaseArrays]], *excluded: Exclusion) -> Store:
    spec = StoreSpec(bids.ARMS, SLAB, SPACING)
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
        (clip_w000, "w000: intensity clipped"),
        (swap_subject, "w000 and w048 look unlike (r = "),
        (remove_a_lesion, "T2 falls from 0.1 ml at w048 to 0.0 ml at w096"),
        (empty_t2, "w096: T2 mask empty"),
        (put_lesion_off_the_head, "w096: NET2 100% outside the head"),
        (repeat_the_image, "w048 and w096 are almost the same image"),
        (repeat_net2, "w048 NET2 and w096 NET2 are the same mask"),
        (take_t2_for_net2, "w048 T2 and w048 NET2 are the same mask"),
        (mirror_net2, "w048: NET2 0% inside T2"),
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


def test_thumbnail_shows_three_upright_sessions_with_lesion_outlines(tmp_path: Path) -> None:
    arrays = sound_case()
    arrays.masks[:] = 0
    arrays.masks[1, NET2, 2, 19:21, 3:5] = 1  # in front, on the patient's left
    arrays.present[2, 0] = False
    picture = Image.open(io.BytesIO(measured(tmp_path, arrays).picture))
    zoom, gap = 10, 4
    assert picture.size == (3 * 20 * zoom + 2 * gap, 24 * zoom)
    pixels = np.asarray(picture).astype(int)
    orange = np.abs(pixels - COLOURS["net2"]).max(axis=-1) < 40
    rows, columns = np.nonzero(orange)
    assert rows.min() == (24 - 21) * zoom
    assert columns.min() == 20 * zoom + gap + 3 * zoom
    assert rows.max() - rows.min() == columns.max() - columns.min() == 2 * zoom - 1
    assert not orange[rows.min() + zoom, columns.min() + zoom]  # an outline: the lesion shows
    assert (np.abs(pixels[100:, 2 * (20 * zoom + gap) :] - 38) < 8).all()  # no w096


def test_report_is_self_contained_and_lists_flagged_cases_first(tmp_path: Path) -> None:
    bad = sound_case()
    empty_t2(bad)
    names = ("sub-01", "sub-02", "sub-<b>03")
    cases = [bids.case_of(grid(), index=i, subject=name) for i, name in enumerate(names)]
    exclusion = Exclusion("sub-09", "not finite", "expected finite voxels, got <NaN>")
    store = stored(
        tmp_path / "store",
        list(zip(cases, (sound_case(), bad, sound_case()), strict=True)),
        exclusion,
    )
    measurements = [measure_case(store, i) for i in range(3)]
    page, sheet = write_qc_report(measurements, store.table, tmp_path / "qc")
    text = page.read_text()
    assert "Quality control: 3 cases, 1 to look at, 1 excluded" in text
    assert re.findall(r"<b>(sub-.*?)</b>", text) == ["sub-02", "sub-01", "sub-&lt;b&gt;03"]
    assert "expected finite voxels, got &lt;NaN&gt;" in text
    assert "position: sticky" in text
    assert not re.search(r"https?://|<script|<link|url\(", text)
    sources = re.findall(r'src="(.*?)"', text)
    assert len(sources) == 3
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))

    head, *rows = (line.split("\t") for line in sheet.read_text().splitlines())
    assert {len(row) for row in rows} == {len(head)}
    first = dict(zip(head, rows[0], strict=True))
    assert first["subject"] == "sub-02"
    assert "w096: T2 mask empty" in first["flags"]
    assert (first["w048_t2_ml"], first["w048_t2_count"]) == ("0.1440", "2")
    assert (first["w000_net2_ml"], first["w000_low"], first["spacing"]) == ("n/a", "0", "2x2x3")
    assert dict(zip(head, rows[1], strict=True))["flags"] == "n/a"


def test_subjects_with_one_image_are_flagged(tmp_path: Path) -> None:
    image = fingerprint(sound_case().flair[1])
    cases = [
        replace(bids.case_of(grid(), index=i, subject=f"sub-{i}"), fingerprints={session: image})
        for i, session in enumerate(("w000", "w048"))
    ]
    store = stored(tmp_path / "store", [(case, sound_case()) for case in cases])
    _, sheet = write_qc_report([measure_case(store, i) for i in range(2)], store.table, tmp_path)
    flags = [line.split("\t")[1] for line in sheet.read_text().splitlines()[1:]]
    assert flags == ["w000 is the image of sub-1 at w048", "w048 is the image of sub-0 at w000"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_qc_job_writes_page_and_table(tmp_path: Path) -> None:
    cases = [(bids.case_of(grid(), index=i, subject=f"sub-{i}"), sound_case()) for i in range(3)]
    stored(tmp_path / "store", cases)
    flags = ["--config", str(DEMO), "--store", str(tmp_path / "store")]
    assert qc_job.main([*flags, "--out", str(tmp_path / "qc")]) == 0
    assert sorted(path.name for path in (tmp_path / "qc").iterdir()) == ["qc.html", "qc.tsv"]
    (tmp_path / "store" / CASE_TABLE).write_text(json.dumps({}))
    assert qc_job.main(flags) == 1
