"""What a store is: its packing, its split, and what makes it valid."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr

from storage import Store, StoreError, open_store, pack_masks, unpack_masks
from storage.convert.summary import summarise
from storage.errors import Exclusion
from storage.layout import CASE_TABLE, StoreSpec, unpack_masks_signed
from storage.preprocess.grid import place_slab
from storage.settings import StoreSettings
from storage.store.array_reader import open_arrays, read_rows
from storage.store.case_table import Case, CaseTable
from storage.store.split import assign_splits
from tests.support import bids
from tests.support.store import noise, table_of, write_tiny_store

SHARES = (0.8, 0.1, 0.1)


@pytest.mark.parametrize("width", [1, 7, 8, 13, 64])
def test_unpacking_undoes_packing(width: int) -> None:
    masks = np.random.default_rng(width).integers(0, 2, (3, 3, 2, 5, width), np.uint8)
    packed = pack_masks(masks)
    assert packed.shape == (3, 3, 2, 5, -(-width // 8))
    np.testing.assert_array_equal(unpack_masks(packed, width), masks)
    signs = np.empty(masks.shape, np.float32)
    unpack_masks_signed(packed, signs)
    np.testing.assert_array_equal(signs, masks.astype(np.float32) * 2 - 1)


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


def test_who_has_a_split_keeps_it_while_the_shares_hold() -> None:
    small, large = trial_of({"placebo": 40, "avonex": 7}), trial_of({"placebo": 100, "avonex": 20})
    before = assign_splits(small, SHARES, seed=0)
    after = assign_splits(large, SHARES, seed=0, kept=before)
    assert {name: after[name] for name in before} == before
    counts = Counter((large[name], split) for name, split in after.items())
    assert counts["placebo", "train"] == 80
    assert counts["placebo", "test"] == 10
    assert counts["avonex", "train"] == 16
    crowded = dict.fromkeys(list(small)[:30], "test")  # more than the share of a test split
    later = assign_splits(small, SHARES, seed=0, kept=crowded)
    assert {name: later[name] for name in crowded} == crowded
    assert later.keys() == small.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"split_fractions": (0.8, 0.1, 0.2)},
            "store.split_fractions: expected shares .* sum to 1",
        ),
        ({"slab": (0, 8, 8)}, "store.slab: expected three positive sizes"),
        ({"percentiles": (99.0, 1.0)}, "store.percentiles: expected 0 <= low < high"),
        ({"cases_per_shard": 0}, "store.cases_per_shard: expected 1 or more, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"slab": (5, 8, 8), "spacing": (3.0, 2.0, 2.0), "resample": False}
    with pytest.raises(ValueError, match=message):
        StoreSettings(**good | change)  # type: ignore[arg-type]


def small_store(path: Path, slab: tuple[int, int, int] = (5, 12, 13)) -> CaseTable:
    settings = StoreSettings(slab, (3.0, 2.0, 2.0), resample=False)
    spec = StoreSpec(bids.ARMS, settings.slab, settings.spacing)
    volume = bids.volume_of(bids.head((9, 18, 14), 0), bids.Geometry())
    grid = place_slab(volume, settings=settings, brain=None)
    cases = [bids.case_of(grid, index=i, subject=f"sub-0{i}") for i in range(3)]
    refused = Exclusion("sub-09", "not finite", "expected ...")
    return write_tiny_store(path, table_of(spec, cases, refused=[refused]), noise(3, spec))


def test_a_store_opens_with_its_cases(tmp_path: Path) -> None:
    table = small_store(tmp_path / "store.zarr")
    store = open_store(tmp_path / "store.zarr")
    assert store.table == table
    assert store.case("sub-01") == table.cases[1]
    assert store.read(1).masks.shape == (3, 3, 5, 12, 13)
    assert store.select(split="val") == []
    assert [case.index for case in store.select(split="train", arm="placebo")] == [0, 1, 2]


def test_rows_in_any_order_take_no_more_memory_than_a_few_times_what_they_hold(
    tmp_path: Path,
) -> None:
    small_store(tmp_path, (5, 64, 64))
    store = open_store(tmp_path)
    flair, rows = open_arrays(tmp_path)["flair"], [store.cases[place].row for place in (2, 0)]
    read_rows(flair, rows)  # what is kept for the next time
    tracemalloc.start()
    found = read_rows(flair, rows, sessions=(2, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for place, index in enumerate((2, 0)):
        np.testing.assert_array_equal(found[place], store.read(index).flair[[2, 0]])
    assert peak < 10 * found.nbytes  # coordinates of every voxel took 64 times


def test_indices_count_only_in_the_store_that_they_came_from(tmp_path: Path) -> None:
    table = small_store(tmp_path)
    assert open_store(tmp_path, inputs=table.inputs).table == table
    with pytest.raises(StoreError, match=r"expected the cases of before, got inputs: it was conv"):
        open_store(tmp_path, inputs="before")


def test_a_case_that_is_not_there_is_explained(tmp_path: Path) -> None:
    small_store(tmp_path)
    store: Store = open_store(tmp_path)
    with pytest.raises(StoreError, match=r"a case of sub-77, got none; it holds 3 others"):
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
    table = json.loads((tmp_path / CASE_TABLE).read_text())
    for key, value in (("schema", 1), ("channels", ["flair"])):
        changed = {**group["attributes"]["lesioncast"], key: value}
        text = json.dumps({**group, "attributes": {"lesioncast": changed}})
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(StoreError, match=f"expected {key} .*; convert it again"):
            open_store(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps(group))
    (tmp_path / CASE_TABLE).write_text(json.dumps({**table, "schema": 1}))
    with pytest.raises(StoreError, match="expected a case table, got .*schema 1"):
        open_store(tmp_path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a Zarr 3 store, got none"):
        open_store(tmp_path / "nowhere")
    small_store(tmp_path)
    (tmp_path / CASE_TABLE).write_text("{}")
    with pytest.raises(StoreError, match="expected a case table"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"expected a Zarr 3 store, got none"):
        open_store(tmp_path / CASE_TABLE)
    zarr.create_group(tmp_path / "other", attributes={"a": 1})
    with pytest.raises(StoreError, match="got a Zarr group without its mark"):
        open_store(tmp_path / "other")


def test_cases_share_a_file_and_are_read_by_session(tmp_path: Path) -> None:
    small_store(tmp_path)
    files = [path for path in (tmp_path / "shards/shard/flair/c").rglob("*") if path.is_file()]
    assert len(files) == 1
    group = zarr.open_group(tmp_path / "shards/shard", mode="r")
    chunks = {name: array.chunks for name, array in group.arrays()}
    assert chunks["flair"] == (1, 1, 5, 12, 13)
    assert chunks["masks"] == (1, 1, 3, 5, 12, 2)
    assert chunks["parcellation"] == (1, 5, 12, 13)
    assert group.attrs["lesioncast"]["slab"] == [5, 12, 13]
    assert {array.shards[0] for _, array in group.arrays()} == {3}


@pytest.mark.parametrize("sessions", [None, [2], [0, 2], [2, 0]])
@pytest.mark.parametrize("places", [[0, 1, 2], [2], [2, 0], [1, 1, 0]])
def test_rows_come_in_the_order_asked_for(
    tmp_path: Path, places: list[int], sessions: list[int] | None
) -> None:
    table = small_store(tmp_path)
    arrays = open_arrays(tmp_path)
    for name, block in noise(3, table.spec).items():
        expected = block[places]
        if sessions is not None and name != "parcellation":
            expected = expected[:, sessions]
        rows = [table.cases[place].row for place in places]
        np.testing.assert_array_equal(
            read_rows(arrays[name], rows, sessions=sessions), expected, err_msg=name
        )


def read_or_why(path: Path, name: str, case: Case) -> np.ndarray | str:
    try:
        return read_rows(open_arrays(path)[name], [case.row])[0]
    except StoreError as error:
        return str(error)


@pytest.mark.parametrize("name", ["flair", "masks", "parcellation", "present"])
def test_a_flipped_bit_is_found_where_it_is_read(tmp_path: Path, name: str) -> None:
    table = small_store(tmp_path)
    (file,) = (path for path in (tmp_path / f"shards/shard/{name}/c").rglob("0") if path.is_file())
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    expected = noise(3, table.spec)[name]
    for position in rng.integers(0, len(whole), 40):
        spoiled = bytearray(whole)
        spoiled[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoiled)
        found = [read_or_why(tmp_path, name, case) for case in table.cases]
        assert any(isinstance(each, str) for each in found), f"byte {position} of {len(whole)}"
        for case, each in zip(table.cases, found, strict=True):
            if isinstance(each, str):
                assert f"shard/{name}: expected {case.subject} as it was" in each
            else:  # an intact neighbour in the same file
                np.testing.assert_array_equal(each, expected[case.row.place])


def test_a_file_that_is_gone_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    small_store(tmp_path)
    store = open_store(tmp_path)
    assert store.read(0).flair.any()
    (file,) = (path for path in (tmp_path / "shards/shard/flair/c").rglob("0") if path.is_file())
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(StoreError, match=r"expected sub-01 as it was written, got no file shards"):
        store.read(1)
    with pytest.raises(StoreError, match=r"expected all files of its shards, got none at shards"):
        open_store(tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"shards/shard/flair: expected sub-0"):
        store.read(2)


def test_a_summary_counts_what_is_missing_and_names_who_was_refused(tmp_path: Path) -> None:
    table = small_store(tmp_path)
    assert summarise(table) == [
        "3 converted: 3 train",
        "1 refused: not finite 1",
        "  sub-09: expected ...",
    ]
