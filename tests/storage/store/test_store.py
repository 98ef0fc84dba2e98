"""Open and read a store: packing, splits, row order, and errors of damaged stores."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr

from storage import Store, StoreError, open_store, pack_masks, unpack_masks
from storage.convert.summary import summarise
from storage.layout import CASE_TABLE, unpack_masks_signed
from storage.settings import StoreSettings
from storage.store.array_reader import open_arrays, read_rows
from storage.store.case_table import Case
from storage.store.split import assign_splits
from tests.support.store import noise, write_small_store

SHARES = (0.8, 0.1, 0.1)


@pytest.mark.parametrize("width", [1, 7, 8, 13, 64])
def test_unpack_masks_inverts_pack_masks(width: int) -> None:
    masks = np.random.default_rng(width).integers(0, 2, (3, 3, 2, 5, width), np.uint8)
    packed = pack_masks(masks)
    assert packed.shape == (3, 3, 2, 5, -(-width // 8))
    np.testing.assert_array_equal(unpack_masks(packed, width), masks)
    signs = np.empty(masks.shape, np.float32)
    unpack_masks_signed(packed, signs)
    np.testing.assert_array_equal(signs, masks.astype(np.float32) * 2 - 1)


def trial_of(sizes: dict[str | None, int]) -> dict[str, str | None]:
    """Return the arms of a trial with that many subjects in each arm."""
    names = ((arm, f"sub-{arm}{i:03d}") for arm, size in sizes.items() for i in range(size))
    return {name: arm for arm, name in names}


def test_each_arm_is_split_by_the_same_fractions() -> None:
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


def test_split_depends_only_on_seed_and_names() -> None:
    arms = trial_of({"placebo": 50, "avonex": 50})
    backwards = dict(reversed(arms.items()))
    assert assign_splits(arms, SHARES, seed=1) == assign_splits(backwards, SHARES, seed=1)
    assert assign_splits(arms, SHARES, seed=1) != assign_splits(arms, SHARES, seed=2)


def test_few_subjects_change_split_when_a_trial_grows() -> None:
    before = assign_splits(trial_of({"placebo": 500}), SHARES, seed=0)
    after = assign_splits(trial_of({"placebo": 510}), SHARES, seed=0)
    assert sum(before[name] != after[name] for name in before) < 25


def test_existing_splits_are_kept_and_new_subjects_fill_the_fractions() -> None:
    small, large = trial_of({"placebo": 40, "avonex": 7}), trial_of({"placebo": 100, "avonex": 20})
    before = assign_splits(small, SHARES, seed=0)
    after = assign_splits(large, SHARES, seed=0, existing_splits=before)
    assert {name: after[name] for name in before} == before
    counts = Counter((large[name], split) for name, split in after.items())
    assert counts["placebo", "train"] == 80
    assert counts["placebo", "test"] == 10
    assert counts["avonex", "train"] == 16
    crowded = dict.fromkeys(list(small)[:30], "test")  # more than the fraction of a test split
    later = assign_splits(small, SHARES, seed=0, existing_splits=crowded)
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
def test_invalid_settings_are_refused(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"slab": (5, 8, 8), "spacing": (3.0, 2.0, 2.0), "resample": False}
    with pytest.raises(ValueError, match=message):
        StoreSettings(**good | change)  # type: ignore[arg-type]


def test_open_store_returns_its_cases(tmp_path: Path) -> None:
    table = write_small_store(tmp_path / "store.zarr")
    store = open_store(tmp_path / "store.zarr")
    assert store.table == table
    assert store.case("sub-01") == table.cases[1]
    assert store.read(1).masks.shape == (3, 3, 5, 12, 13)
    assert store.select(split="val") == []
    assert [case.index for case in store.select(split="train", arm="placebo")] == [0, 1, 2]


def test_reading_rows_in_any_order_needs_little_memory(
    tmp_path: Path,
) -> None:
    write_small_store(tmp_path, (5, 64, 64))
    store = open_store(tmp_path)
    flair, rows = open_arrays(tmp_path)["flair"], [store.cases[position].row for position in (2, 0)]
    read_rows(flair, rows)  # fills caches
    tracemalloc.start()
    values = read_rows(flair, rows, sessions=(2, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for position, index in enumerate((2, 0)):
        np.testing.assert_array_equal(values[position], store.read(index).flair[[2, 0]])
    assert peak < 10 * values.nbytes  # indexing by voxel coordinates took 64 times


def test_case_indices_are_refused_for_another_table(tmp_path: Path) -> None:
    table = write_small_store(tmp_path)
    assert open_store(tmp_path, inputs=table.inputs).table == table
    with pytest.raises(StoreError, match=r"expected the cases of before, got inputs: it was conv"):
        open_store(tmp_path, inputs="before")


def test_missing_case_error_gives_the_reason(tmp_path: Path) -> None:
    write_small_store(tmp_path)
    store: Store = open_store(tmp_path)
    with pytest.raises(StoreError, match=r"a case of sub-77, got none; it holds 3 others"):
        store.case("sub-77")
    with pytest.raises(StoreError, match=r"it was excluded: sub-09: expected"):
        store.case("sub-09")


def test_store_without_case_table_is_refused(tmp_path: Path) -> None:
    write_small_store(tmp_path)
    (tmp_path / CASE_TABLE).unlink()
    with pytest.raises(StoreError, match=r"expected cases.json, got none: its conversion did not"):
        open_store(tmp_path)


def test_store_of_another_schema_is_refused_with_make_it_again(tmp_path: Path) -> None:
    write_small_store(tmp_path)
    group = json.loads((tmp_path / "zarr.json").read_text())
    table = json.loads((tmp_path / CASE_TABLE).read_text())
    for key, value, message in (
        (
            "schema",
            3,
            "expected a store of schema 4, got schema 3 of another version .* again with",
        ),
        ("channels", ["flair"], "expected channels .*; convert it again"),
    ):
        changed = {**group["attributes"]["lesioncast"], key: value}
        text = json.dumps({**group, "attributes": {"lesioncast": changed}})
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(StoreError, match=message):
            open_store(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps(group))
    (tmp_path / CASE_TABLE).write_text(json.dumps({**table, "schema": 1}))
    with pytest.raises(StoreError, match="expected a case table, got .*schema 1"):
        open_store(tmp_path)


def test_paths_that_hold_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a Zarr 3 store, got none"):
        open_store(tmp_path / "nowhere")
    write_small_store(tmp_path)
    (tmp_path / CASE_TABLE).write_text("{}")
    with pytest.raises(StoreError, match="expected a case table"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match=r"expected a Zarr 3 store, got none"):
        open_store(tmp_path / CASE_TABLE)
    zarr.create_group(tmp_path / "other", attributes={"a": 1})
    with pytest.raises(StoreError, match="got another Zarr group"):
        open_store(tmp_path / "other")


def test_cases_share_a_file_with_one_chunk_per_session(tmp_path: Path) -> None:
    write_small_store(tmp_path)
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
@pytest.mark.parametrize("positions", [[0, 1, 2], [2], [2, 0], [1, 1, 0]])
def test_rows_are_returned_in_the_requested_order(
    tmp_path: Path, positions: list[int], sessions: list[int] | None
) -> None:
    table = write_small_store(tmp_path)
    arrays = open_arrays(tmp_path)
    for name, block in noise(3, table.spec).items():
        expected = block[positions]
        if sessions is not None and name != "parcellation":
            expected = expected[:, sessions]
        rows = [table.cases[position].row for position in positions]
        np.testing.assert_array_equal(
            read_rows(arrays[name], rows, sessions=sessions), expected, err_msg=name
        )


def read_or_error(path: Path, name: str, case: Case) -> np.ndarray | str:
    """Return the row of a case, or the text of the error."""
    try:
        return read_rows(open_arrays(path)[name], [case.row])[0]
    except StoreError as error:
        return str(error)


@pytest.mark.parametrize("name", ["flair", "masks", "parcellation", "present"])
def test_flipped_bit_raises_an_error_that_names_the_subject(tmp_path: Path, name: str) -> None:
    table = write_small_store(tmp_path)
    (file,) = (path for path in (tmp_path / f"shards/shard/{name}/c").rglob("0") if path.is_file())
    original, rng = file.read_bytes(), np.random.default_rng(0)
    expected = noise(3, table.spec)[name]
    for position in rng.integers(0, len(original), 40):
        corrupted = bytearray(original)
        corrupted[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(corrupted)
        results = [read_or_error(tmp_path, name, case) for case in table.cases]
        assert any(isinstance(result, str) for result in results), (
            f"byte {position} of {len(original)}"
        )
        for case, result in zip(table.cases, results, strict=True):
            if isinstance(result, str):
                assert f"shard/{name}: expected {case.subject} as it was" in result
            else:  # an intact neighbour in the same file
                np.testing.assert_array_equal(result, expected[case.row.position])


def test_missing_file_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    write_small_store(tmp_path)
    store = open_store(tmp_path)
    assert store.read(0).flair.any()
    (file,) = (path for path in (tmp_path / "shards/shard/flair/c").rglob("0") if path.is_file())
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(StoreError, match=r"expected sub-01 as it was written, got no file shards"):
        store.read(1)
    with pytest.raises(
        StoreError, match=r"expected all files of its shards, got no file at shards"
    ):
        open_store(tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"shards/shard/flair: expected sub-0"):
        store.read(2)


@pytest.mark.parametrize("name", ["flair", "masks", "parcellation", "present"])
@pytest.mark.parametrize("sessions", [None, [1]])
def test_chunk_missing_in_the_index_is_an_error_and_not_zeros(
    tmp_path: Path, name: str, sessions: list[int] | None
) -> None:
    """The index has a valid checksum and marks one chunk, or all of them, as not stored."""
    table = write_small_store(tmp_path)
    row = table.cases[1].row
    assert read_rows(open_arrays(tmp_path)[name], [row], sessions=sessions).any()
    (file,) = (path for path in (tmp_path / f"shards/shard/{name}/c").rglob("0") if path.is_file())
    original = file.read_bytes()
    chunks = 3 if name in ("parcellation", "present") else 9
    for lost in (slice(None), chunks // 2):
        index = np.frombuffer(original[-16 * chunks - 4 : -4], "<u8").reshape(chunks, 2).copy()
        index[lost] = 2**64 - 1
        checksum = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
        file.write_bytes(original[: -16 * chunks - 4] + index.tobytes() + checksum)
        with pytest.raises(
            StoreError, match=r"expected sub-0\d as it was written, got an index wit"
        ):
            read_rows(open_arrays(tmp_path)[name], [row], sessions=sessions)
        with pytest.raises(StoreError, match=r"got an index without"):
            open_store(tmp_path).read(1)


def test_summary_counts_cases_and_lists_exclusions(tmp_path: Path) -> None:
    table = write_small_store(tmp_path)
    assert summarise(table) == [
        "3 converted: 3 train",
        "1 excluded: not finite 1",
        "  sub-09: expected ...",
    ]
