"""A store as Ray Data reads it: the columns, sessions and cases asked for, in true sizes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
from ray.data.block import BlockAccessor

from storage import SESSIONS, Store, StoreError, pack_masks
from storage.store.array_reader import open_arrays, read_rows
from storage.store.ray_datasource import ZarrDatasource
from tests.support.forecast import write_store

CASES = 14


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Arms in turn, eight test and six training cases, all channels but w000/net2 present."""
    folder = tmp_path_factory.mktemp("source")
    return write_store(folder / "store.zarr", folder / "bids", test=8, train=CASES - 8)


def blocks_of(source: ZarrDatasource, *, target: int | None = None) -> list[pa.Table]:
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = target
    return [block for task in source.get_read_tasks(2, data_context=context) for block in task()]


def batches_of(source: ZarrDatasource) -> list[dict[str, Any]]:
    return [BlockAccessor.for_block(each).to_batch_format("numpy") for each in blocks_of(source)]


@pytest.mark.parametrize("sessions", [("w096",), ("w000", "w096"), ("w096", "w000"), SESSIONS])
def test_only_the_sessions_asked_for_are_in_a_row(store: Store, sessions: tuple[str, ...]) -> None:
    columns = ("case", "flair", "masks", "present", "parcellation")
    source = ZarrDatasource(store.path, columns=columns, sessions=sessions)
    places = [SESSIONS.index(session) for session in sessions]
    seen = []
    for batch in batches_of(source):
        for place, index in enumerate(batch["case"].tolist()):
            seen.append(index)
            arrays = store.read(index)
            for name, expected in (
                ("flair", arrays.flair[places]),
                ("masks", pack_masks(arrays.masks[places])),
                ("present", arrays.present[places]),
                ("parcellation", arrays.parcellation),
            ):
                np.testing.assert_array_equal(batch[name][place], expected)
    assert sorted(seen) == list(range(CASES))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"split": "train"}, range(8, 14)),
        ({"arm": "avonex"}, [1, 4, 7, 10, 13]),
        ({"split": "test", "arm": "placebo"}, [0, 3, 6]),
        ({"split": "train", "having": ("w096/net2", "w000/flair")}, range(8, 14)),
        ({"cases": [9, 2, 9]}, [9, 2, 9]),
    ],
)
def test_filters_choose_cases_before_anything_is_read(
    store: Store, asked: dict[str, Any], expected: Any
) -> None:
    source = ZarrDatasource(store.path, columns=("case",), **asked)
    assert source.estimate_inmemory_data_size() == 8 * len(expected)
    found = np.concatenate([batch["case"] for batch in batches_of(source)])
    assert found.tolist() == list(expected)


def test_indices_of_another_table_are_refused(store: Store) -> None:
    columns, cases = ("case",), (9, 2)
    inputs = store.table.inputs
    assert blocks_of(ZarrDatasource(store.path, columns=columns, cases=cases, inputs=inputs))
    with pytest.raises(StoreError, match="expected the cases of before, got .* converted anew"):
        ZarrDatasource(store.path, columns=columns, cases=cases, inputs="before")


def test_cases_without_a_channel_are_left_out(store: Store) -> None:
    assert store.select(having=("w048/net2",)) == list(store.cases)
    assert store.select(having=("w000/net2",)) == []
    with pytest.raises(ValueError, match="got none that were asked for"):
        ZarrDatasource(store.path, having=("w000/net2",))


@pytest.mark.parametrize(
    "asked", [{"having": ("w096/t1",)}, {"having": ("net2",)}, {"sessions": ("w012",)}]
)
def test_what_no_store_has_is_refused_by_name(store: Store, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected .*(session|channel).* got .*(t1|net2|w012)"):
        ZarrDatasource(store.path, **asked)


@pytest.mark.parametrize("sessions", [("w096",), SESSIONS])
def test_the_bytes_foreseen_are_the_bytes_of_the_blocks(
    store: Store, sessions: tuple[str, ...]
) -> None:
    source = ZarrDatasource(store.path, sessions=sessions)
    blocks = blocks_of(source)
    foreseen = source.estimate_inmemory_data_size()
    assert abs(sum(block.nbytes for block in blocks) / foreseen - 1) < 0.02
    half = blocks_of(source, target=foreseen // 2)
    assert len(half) > len(blocks)
    assert max(block.nbytes for block in half) < 1.02 * foreseen / 2
    for field in blocks[0].schema:
        assert "Tensor" in type(field.type).__name__ or pa.types.is_integer(field.type)


def test_rows_come_in_the_order_asked_for_and_as_often(store: Store) -> None:
    flair = open_arrays(store.path)["flair"]
    for wanted in ([3, 4, 5], [5, 0, 5, 13]):
        taken = read_rows(flair, [store.cases[i].row for i in wanted], sessions=[2, 0])
        expected = [store.read(index).flair[[2, 0]] for index in wanted]
        np.testing.assert_array_equal(taken, expected)
