"""What a store is: its packing, its split, and what makes it valid."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import synthetic_bids as bids

from storage import Store, StoreError, open_store, pack_masks, unpack_masks
from storage.cases import CaseTable, encode_table
from storage.errors import Refusal
from storage.grid import plan_grid
from storage.layout import CASE_TABLE, StoreSpec
from storage.settings import StoreSettings
from storage.split import assign_splits
from storage.store import create_arrays, open_arrays
from storage.summary import summarise

SHARES = (0.8, 0.1, 0.1)


@pytest.mark.parametrize("width", [1, 7, 8, 13, 64])
def test_unpacking_undoes_packing(width: int) -> None:
    masks = np.random.default_rng(width).integers(0, 2, (3, 3, 2, 5, width), np.uint8)
    packed = pack_masks(masks)
    assert packed.shape == (3, 3, 2, 5, -(-width // 8))
    np.testing.assert_array_equal(unpack_masks(packed, width), masks)


def trial_of(sizes: dict[str | None, int]) -> dict[str, str | None]:
    names = ((arm, f"sub-{arm}{i:03d}") for arm, size in sizes.items() for i in range(size))
    return {name: arm for arm, name in names}


def test_every_arm_is_split_by_the_same_shares() -> None:
    arms = trial_of({"placebo": 100, "avonex": 40, "ocrelizumab": 7, None: 5})
    counts = Counter(
        (arms[name], split) for name, split in assign_splits(arms, SHARES, seed=3).items()
    )
    assert counts == {
        ("placebo", "train"): 80, ("placebo", "val"): 10, ("placebo", "test"): 10,
        ("avonex", "train"): 32, ("avonex", "val"): 4, ("avonex", "test"): 4,
        ("ocrelizumab", "train"): 5, ("ocrelizumab", "val"): 1, ("ocrelizumab", "test"): 1,
        (None, "unlabelled"): 5,
    }  # fmt: skip


def test_the_split_depends_on_seed_and_names_alone() -> None:
    arms = trial_of({"placebo": 50, "avonex": 50})
    backwards = dict(reversed(arms.items()))
    assert assign_splits(arms, SHARES, seed=1) == assign_splits(backwards, SHARES, seed=1)
    assert assign_splits(arms, SHARES, seed=1) != assign_splits(arms, SHARES, seed=2)


def test_a_growing_trial_moves_few_subjects() -> None:
    before = assign_splits(trial_of({"placebo": 500}), SHARES, seed=0)
    after = assign_splits(trial_of({"placebo": 510}), SHARES, seed=0)
    assert sum(before[name] != after[name] for name in before) < 25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": (0.8, 0.1, 0.2)}, "store.split: expected shares .* sum to 1"),
        ({"slab": (0, 8, 8)}, "store.slab: expected three positive sizes"),
        ({"percentiles": (99.0, 1.0)}, "store.percentiles: expected 0 <= low < high"),
        ({"cases_per_shard": 0}, "store.cases_per_shard: expected 1 or more, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"slab": (5, 8, 8), "spacing": (3.0, 2.0, 2.0), "resample": False}
    with pytest.raises(ValueError, match=message):
        StoreSettings(**good | change)  # type: ignore[arg-type]


def small_store(path: Path) -> CaseTable:
    settings = StoreSettings((5, 12, 13), (3.0, 2.0, 2.0), resample=False)
    spec = StoreSpec(bids.ARMS, settings.slab, settings.spacing)
    create_arrays(path, spec, rows=3, rows_per_shard=2)
    volume = bids.volume_of(bids.head((9, 18, 14), 0), bids.Geometry())
    grid = plan_grid(volume, settings=settings, brain=None)
    cases = tuple(bids.case_of(grid, index=i, subject=f"sub-0{i}") for i in range(2))
    table = CaseTable("digest", "bids", cases, (Refusal("sub-09", "not finite", "expected ..."),))
    (path / CASE_TABLE).write_bytes(encode_table(table))
    return table


def test_a_store_opens_with_its_cases(tmp_path: Path) -> None:
    table = small_store(tmp_path / "store.zarr")
    store = open_store(tmp_path / "store.zarr")
    assert store.table == table
    assert store.case("sub-01") == table.cases[1]
    assert store.read(1).masks.shape == (3, 3, 5, 12, 13)
    assert store.select(split="val") == []
    assert [case.index for case in store.select(split="train", arm="placebo")] == [0, 1]


def test_a_case_that_is_not_there_is_explained(tmp_path: Path) -> None:
    small_store(tmp_path)
    store: Store = open_store(tmp_path)
    with pytest.raises(StoreError, match=r"a case of sub-77, got none; it holds 2 others"):
        store.case("sub-77")
    with pytest.raises(StoreError, match=r"it was refused: sub-09: expected"):
        store.case("sub-09")


def test_a_store_without_its_case_table_is_refused(tmp_path: Path) -> None:
    small_store(tmp_path)
    (tmp_path / CASE_TABLE).unlink()
    with pytest.raises(StoreError, match=r"expected cases.json, got none: its conversion did not"):
        open_store(tmp_path)


def test_a_store_of_another_schema_is_refused(tmp_path: Path) -> None:
    small_store(tmp_path)
    group = json.loads((tmp_path / "zarr.json").read_text())
    for key, value, message in (
        ("schema", 2, "expected schema 1, got 2"),
        ("channels", ["flair"], "expected the sessions and channels of schema 1"),
        ("slab", [5, 12, 14], "expected the array flair as float16"),
    ):
        changed = {**group["attributes"]["lesioncast"], key: value}
        text = json.dumps({**group, "attributes": {"lesioncast": changed}})
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(StoreError, match=message):
            open_store(tmp_path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a Zarr 3 store, got none"):
        open_store(tmp_path / "nowhere")
    small_store(tmp_path)
    (tmp_path / CASE_TABLE).write_text("{}")
    with pytest.raises(StoreError, match="expected a case table"):
        open_store(tmp_path)


def test_cases_share_files_by_shard(tmp_path: Path) -> None:
    small_store(tmp_path)
    arrays = open_arrays(tmp_path, mode="r+")
    for array in arrays.values():
        array[:] = np.ones(array.shape, array.dtype)
    chunks = [path.name for path in (tmp_path / "flair" / "c").iterdir()]
    assert sorted(chunks) == ["0", "1"]
    assert arrays["flair"].chunks == (1, 3, 5, 12, 13)


def test_a_summary_counts_what_is_missing_and_names_who_was_refused(tmp_path: Path) -> None:
    table = small_store(tmp_path)
    assert summarise(table) == [
        "2 converted: 2 train",
        "1 refused: not finite 1",
        "  sub-09: expected ...",
    ]
