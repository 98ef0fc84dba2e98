"""Convert a BIDS trial on a Ray cluster to a store that Ray Data reads."""

import logging
from pathlib import Path

import numpy as np
import pytest
import ray.data

from lesioncast.jobs import convert as convert_job
from storage import StorageError, Store, open_store, pack_masks
from storage.convert.convert import convert
from storage.convert.plan import ConversionPlan, plan_conversion
from storage.preprocess.prepare import preprocess_subject
from storage.settings import StoreSettings
from storage.store.ray_datasource import ZarrDatasource
from tests.support import bids

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray Data warns of its own defaults when it is first used.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SETTINGS = StoreSettings((5, 12, 13), (3.0, 2.0, 2.0), resample=False, cases_per_shard=3)
SUBJECTS = 8
EXCLUDED = "sub-03"
DEMO = Path(__file__).resolve().parents[3] / "jobs" / "configs" / "demo.yaml"


def planned(root: Path, *, seed: int = 0) -> ConversionPlan:
    """Plan the conversion of the trial below `root`."""
    return plan_conversion(
        root / "bids", root / "store.zarr", settings=SETTINGS, arms=bids.ARMS, seed=seed
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trial, one subject of which is excluded."""
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root / "bids", SUBJECTS)
    bids.path_of(root / "bids", EXCLUDED, "w048", "flair").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def store(root: Path, ray_cluster: None) -> Store:
    return convert(planned(root))


def test_bad_subject_is_excluded_and_the_rest_is_converted(root: Path, store: Store) -> None:
    assert [exclusion.subject for exclusion in store.table.excluded] == [EXCLUDED]
    names = [f"sub-0{i}" for i in range(1, SUBJECTS + 1) if f"sub-0{i}" != EXCLUDED]
    assert [case.subject for case in store.cases] == names
    assert [case.index for case in store.cases] == list(range(SUBJECTS - 1))
    lines = (store.path / "excluded.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["subject", "session", "kind", "reason", "path"]
    assert lines[1].startswith(f"{EXCLUDED}\tw048\tunreadable file\texpected a whole NIfTI file")
    assert sorted(p.name for p in root.iterdir()) == ["bids", "store.zarr"]


def test_store_holds_the_preprocessed_arrays_of_each_subject(store: Store) -> None:
    subjects = {subject.name: subject for subject in planned(store.path.parent).subjects}
    for case in store.cases:
        folder = store.path.parent / "bids"
        metadata, expected = preprocess_subject(
            subjects[case.subject], folder, settings=SETTINGS, arms=bids.ARMS
        )
        read = store.read(case.index)
        np.testing.assert_array_equal(read.flair, expected.flair)
        np.testing.assert_array_equal(read.masks, expected.masks)
        np.testing.assert_array_equal(read.parcellation, expected.parcellation)
        np.testing.assert_array_equal(read.present, expected.present)
        assert case.digests == metadata.digests
        assert case.arm == metadata.arm
        assert store.spec.arms[case.arm_index] == case.arm


def test_ray_data_rows_equal_the_arrays_of_the_store(store: Store) -> None:
    indices = [5, 0, 2, 6]
    columns = ("case", "flair", "masks", "present", "parcellation", "arm")
    source = ZarrDatasource(store.path, columns=columns, cases=indices)
    rows = ray.data.read_datasource(source).take_all()
    assert sorted(row["case"] for row in rows) == sorted(indices)
    for row in rows:
        case, arrays = store.cases[row["case"]], store.read(row["case"])
        assert row["flair"].dtype == np.float16
        np.testing.assert_array_equal(row["flair"], arrays.flair)
        np.testing.assert_array_equal(row["masks"], pack_masks(arrays.masks))
        np.testing.assert_array_equal(row["present"], arrays.present)
        np.testing.assert_array_equal(row["parcellation"], arrays.parcellation)
        assert row["arm"] == case.arm_index


def test_blocks_are_sized_by_bytes_and_hold_numeric_columns(store: Store) -> None:
    source = ZarrDatasource(store.path, columns=("case", "flair"))
    row = 8 + 3 * 5 * 12 * 13 * 2
    assert source.estimate_inmemory_data_size() == row * len(store.cases)
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 2 * row
    tasks = source.get_read_tasks(1, data_context=context)
    blocks = [block for task in tasks for block in task()]
    assert [block.num_rows for block in blocks] == [2, 2, 2, 1]
    assert all("Tensor" in type(block.schema.field("flair").type).__name__ for block in blocks)


def test_unknown_column_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"expected columns in .*, got \['t1'\]"):
        ZarrDatasource(store.path, columns=("case", "t1"))


def test_failed_conversion_keeps_the_old_store(tmp_path: Path) -> None:
    bids.write_trial(tmp_path / "bids", 2)
    first = convert(planned(tmp_path))
    for name in ("sub-01", "sub-02"):
        bids.path_of(tmp_path / "bids", name, "w000", "flair").unlink()
    with pytest.raises(StorageError, match=r"none of 2 subjects could be converted; .*sub-01"):
        convert(planned(tmp_path))
    assert open_store(first.path).table == first.table
    assert open_store(first.path).read(0).present.any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bids", "store.zarr"]


def test_folder_that_is_not_a_store_is_never_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    conversion = plan_conversion(root / "bids", tmp_path, settings=SETTINGS, arms=bids.ARMS, seed=0)
    with pytest.raises(StorageError, match="expected a store or nothing, got something else"):
        convert(conversion)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_progress_log_has_rate_and_remaining_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bids.write_trial(tmp_path / "bids", 1)
    with caplog.at_level(logging.INFO, logger="storage.convert.convert"):
        convert(planned(tmp_path))
    assert "1 of 1 subjects" in caplog.text
    assert "s left" in caplog.text


def test_exit_codes_of_the_convert_job(
    root: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--config", str(DEMO), "--store", str(store.path)]
    for key, value in {
        "store.slab": [5, 12, 13], "store.spacing": [3.0, 2.0, 2.0], "store.resample": "false",
        "store.split_fractions": [0.8, 0.1, 0.1],
        "store.cases_per_shard": 3, "arms": list(bids.ARMS),
        "seed": 0,
    }.items():  # fmt: skip
        flags += ["--set", f"{key}={value}"]
    with caplog.at_level(logging.INFO):
        assert convert_job.main([*flags, "--bids", str(root / "bids")]) == 3
    assert "conversion.up_to_date" in caplog.text
    assert f"  {EXCLUDED}, ses-w048: expected a whole NIfTI file" in caplog.text
    assert convert_job.main([*flags, "--bids", str(root / "bids"), "--verify"]) == 0
    (store.path / "shards" / store.cases[0].row.shard / "zarr.json").write_text("{}")
    assert convert_job.main([*flags, "--bids", str(root / "bids"), "--verify"]) == 1
    assert "zarr.json: expected sha256" in caplog.text
    assert convert_job.main([*flags, "--bids", str(root / "nowhere")]) == 1
    assert convert_job.main([*flags, "--set", "store.slabs=[1, 1, 1]"]) == 2
