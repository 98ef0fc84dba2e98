"""Read a store with Ray Data: requested columns, sessions and cases, with correct sizes."""

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
    """Write a store of arms in turn, 8 test and 6 training cases; only w000/net2 is absent."""
    folder = tmp_path_factory.mktemp("source")
    return write_store(folder / "store.zarr", folder / "bids", test=8, train=CASES - 8)


def blocks_of(source: ZarrDatasource, *, target: int | None = None) -> list[pa.Table]:
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = target
    return [block for task in source.get_read_tasks(2, data_context=context) for block in task()]


def batches_of(source: ZarrDatasource) -> list[dict[str, Any]]:
    return [BlockAccessor.for_block(block).to_batch_format("numpy") for block in blocks_of(source)]


@pytest.mark.parametrize("sessions", [("w096",), ("w000", "w096"), ("w096", "w000"), SESSIONS])
def test_rows_hold_only_the_requested_sessions(store: Store, sessions: tuple[str, ...]) -> None:
    columns = ("case", "flair", "masks", "present", "parcellation")
    source = ZarrDatasource(store.path, columns=columns, sessions=sessions)
    positions = [SESSIONS.index(session) for session in sessions]
    seen = []
    for batch in batches_of(source):
        for position, index in enumerate(batch["case"].tolist()):
            seen.append(index)
            arrays = store.read(index)
            for name, expected in (
                ("flair", arrays.flair[positions]),
                ("masks", pack_masks(arrays.masks[positions])),
                ("present", arrays.present[positions]),
                ("parcellation", arrays.parcellation),
            ):
                np.testing.assert_array_equal(batch[name][position], expected)
    assert sorted(seen) == list(range(CASES))


def test_source_reads_only_the_given_cases_in_their_order(store: Store) -> None:
    cases = [9, 2, 9]
    source = ZarrDatasource(store.path, columns=("case",), cases=cases)
    assert source.estimate_inmemory_data_size() == 8 * len(cases)
    indices = np.concatenate([batch["case"] for batch in batches_of(source)])
    assert indices.tolist() == cases


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"split": "train"}, range(8, 14)),
        ({"arm": "avonex"}, [1, 4, 7, 10, 13]),
        ({"split": "test", "arm": "placebo"}, [0, 3, 6]),
        ({"split": "train", "having": ("w096/net2", "w000/flair")}, range(8, 14)),
    ],
)
def test_select_filters_by_split_arm_and_channels(
    store: Store, filters: dict[str, Any], expected: Any
) -> None:
    assert [case.index for case in store.select(**filters)] == list(expected)


def test_indices_of_another_table_are_refused(store: Store) -> None:
    columns, cases = ("case",), (9, 2)
    inputs = store.table.inputs
    assert blocks_of(ZarrDatasource(store.path, columns=columns, cases=cases, inputs=inputs))
    with pytest.raises(StoreError, match="expected the cases of before, got .* converted anew"):
        ZarrDatasource(store.path, columns=columns, cases=cases, inputs="before")


def test_cases_without_a_channel_are_not_selected(store: Store) -> None:
    assert store.select(having=("w048/net2",)) == list(store.cases)
    assert store.select(having=("w000/net2",)) == []
    with pytest.raises(ValueError, match=r"expected cases of .* to read, got none"):
        ZarrDatasource(store.path, cases=())


@pytest.mark.parametrize("channel", ["w096/t1", "net2"])
def test_unknown_channels_are_refused_by_name(store: Store, channel: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*channel.* got .*(t1|net2)"):
        store.select(having=(channel,))


def test_unknown_sessions_are_refused_by_name(store: Store) -> None:
    with pytest.raises(ValueError, match=r"expected .*session.* got .*w012"):
        ZarrDatasource(store.path, sessions=("w012",))


@pytest.mark.parametrize("sessions", [("w096",), SESSIONS])
def test_estimated_size_equals_the_size_of_the_blocks(
    store: Store, sessions: tuple[str, ...]
) -> None:
    source = ZarrDatasource(store.path, sessions=sessions)
    blocks = blocks_of(source)
    estimate = source.estimate_inmemory_data_size()
    assert abs(sum(block.nbytes for block in blocks) / estimate - 1) < 0.02
    half = blocks_of(source, target=estimate // 2)
    assert len(half) > len(blocks)
    assert max(block.nbytes for block in half) < 1.02 * estimate / 2
    for field in blocks[0].schema:
        assert "Tensor" in type(field.type).__name__ or pa.types.is_integer(field.type)


def test_each_task_reads_one_batch_as_one_block(store: Store) -> None:
    cases = [9, 2, 9, 0, 5]
    source = ZarrDatasource(store.path, columns=("case", "flair"), cases=cases, batch_size=2)
    assert len(source.get_read_tasks(1)) == source.batches == 3
    # A block may exceed Ray Data's target, so that a batch is never put together from two.
    blocks = [BlockAccessor.for_block(block) for block in blocks_of(source, target=1)]
    read = [block.to_batch_format("numpy")["case"].tolist() for block in blocks]
    assert read == [[9, 2], [9, 0], [5]]


def test_rows_are_returned_in_the_requested_order_with_repeats(store: Store) -> None:
    flair = open_arrays(store.path)["flair"]
    for indices in ([3, 4, 5], [5, 0, 5, 13]):
        rows = read_rows(flair, [store.cases[i].row for i in indices], sessions=[2, 0])
        expected = [store.read(index).flair[[2, 0]] for index in indices]
        np.testing.assert_array_equal(rows, expected)
