"""Cases from a store to the tensors of a batch, through a node's cache."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.diffusion.settings.networks import CONDITION
from lesioncast.errors import TrainingError
from lesioncast.imaging.channels import TARGET_CHANNELS, parse_channels
from lesioncast.training.data.dataset import prefetch
from lesioncast.training.data.node_cache import Rows, fill, open_cases
from lesioncast.training.data.selection import CaseSelection
from lesioncast.training.randomness import ConditionDropout
from storage import unpack_masks
from tests.support.training import CASES, SLAB, random_rows, reader_of, tiny_cache, tiny_cases

NULL_ARM = 2


def no_dropout(cases: int) -> ConditionDropout:
    return ConditionDropout(
        np.zeros(cases, bool), np.zeros((cases, len(CONDITION)), bool), np.zeros((cases, 2), bool)
    )


def test_batch_holds_the_requested_cases_in_order(tmp_path: Path) -> None:
    source = random_rows()
    cases = tiny_cases(tmp_path, source)
    rows = np.array([4, 0])
    batch = cases.batch(rows, no_dropout(2), null_arm=NULL_ARM, condition=parse_channels(CONDITION))
    masks = unpack_masks(source["masks"], SLAB[-1])
    for index, row in enumerate(rows):
        flair, net2 = batch.x[index].numpy()
        np.testing.assert_array_equal(flair, source["flair"][row, 2].astype(np.float32))
        np.testing.assert_array_equal(net2, 2.0 * masks[row, 2, 2] - 1)
    assert batch.condition is not None
    assert batch.condition.shape == (2, len(CONDITION), *SLAB)
    assert batch.arm.tolist() == [0, NULL_ARM]  # case 0 has no arm


def test_missing_and_dropped_channels_are_zero(tmp_path: Path) -> None:
    cases = tiny_cases(tmp_path)
    dropout = no_dropout(2)
    dropout.arm[0] = True
    dropout.channels[0, 3] = True
    batch = cases.batch(
        np.array([1, 1]), dropout, null_arm=NULL_ARM, condition=parse_channels(CONDITION)
    )
    assert batch.condition is not None
    null = (batch.condition.flatten(2) == 0).all(2)
    missing = CONDITION.index("w000/gad")
    assert null.nonzero().tolist() == [[0, missing], [0, 3], [1, missing]]
    assert batch.arm.tolist() == [NULL_ARM, 0]


def test_stage_one_has_no_condition(tmp_path: Path) -> None:
    batch = tiny_cases(tmp_path).batch(
        np.arange(3), no_dropout(3), null_arm=NULL_ARM, condition=None
    )
    assert batch.condition is None
    assert batch.x.shape == (3, len(TARGET_CHANNELS), *SLAB)


def test_active_cases_are_those_with_a_lesion_at_w096(tmp_path: Path) -> None:
    cases = tiny_cases(tmp_path)
    assert cases.active.tolist() == [case % 3 == 0 for case in range(CASES)]


def test_workers_of_a_node_share_one_pass_over_the_store(tmp_path: Path) -> None:
    passes: list[CaseSelection] = []

    def read(selection: CaseSelection, columns: tuple[str, ...]) -> Iterable[Rows]:
        passes.append(selection)
        return reader_of(random_rows())(selection, columns)

    cache = CaseSelection(
        Path("/no/store"), tuple(range(CASES)), "shared", (tmp_path,), SLAB, "inputs"
    )
    with ThreadPoolExecutor(4) as workers:
        folders = set(workers.map(lambda _: fill(cache, read).folder, range(4)))
    assert folders == {tmp_path / cache.name}
    assert len(passes) == 1


def test_blocks_may_arrive_in_any_order(tmp_path: Path) -> None:
    source = random_rows()
    backwards = {name: column[::-1] for name, column in source.items()}
    ordered, shuffled = (
        tiny_cache(tmp_path, source, "ordered"),
        tiny_cache(tmp_path, source, "shuffled"),
    )
    from_backwards = open_cases(replace(shuffled, digest="backwards"), reader_of(backwards))
    expected = open_cases(ordered, reader_of({}))
    for name in ("flair", "masks", "arm", "active"):
        np.testing.assert_array_equal(getattr(from_backwards, name), getattr(expected, name))


def test_incomplete_pass_over_the_store_leaves_no_cache(tmp_path: Path) -> None:
    cache = CaseSelection(Path("/no/store"), (0, 1, 99), "short", (tmp_path,), SLAB, "inputs")
    with pytest.raises(TrainingError, match=r"/no/store: expected cases \[99\]"):
        fill(cache, reader_of(random_rows(2)))
    assert not (tmp_path / cache.name).exists()


def test_cached_arrays_are_read_only(tmp_path: Path) -> None:
    cases = tiny_cases(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        cases.flair[0] = 0


def test_prefetch_keeps_the_order_and_raises_errors() -> None:
    for depth in (1, 2, 9):
        squares = list(prefetch(lambda step: step**2, range(3, 6), depth=depth))
        assert squares == [(3, 9), (4, 16), (5, 25)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda step: 1 // step, range(1)))
    assert torch.is_grad_enabled()
