"""From a store to the tensors of a batch, through a node's cache."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.diffusion.controlnet import CONDITION
from lesioncast.errors import TrainingError
from lesioncast.imaging.channels import TARGET_CHANNELS, parse_channels
from lesioncast.training.data.dataset import prefetch
from lesioncast.training.data.node_cache import Rows, fill, open_cases
from lesioncast.training.data.selection import CaseSelection
from lesioncast.training.randomness import ConditionDropout
from storage import unpack_masks
from tests.support.training import CASES, SLAB, given, random_rows, tiny_cache, tiny_cases

NULL_ARM = 2


def no_drops(cases: int) -> ConditionDropout:
    return ConditionDropout(
        np.zeros(cases, bool), np.zeros((cases, len(CONDITION)), bool), np.zeros((cases, 2), bool)
    )


def test_a_batch_holds_the_cases_asked_for_in_their_order(tmp_path: Path) -> None:
    source = random_rows()
    cases = tiny_cases(tmp_path, source)
    rows = np.array([4, 0])
    batch = cases.batch(rows, no_drops(2), null_arm=NULL_ARM, condition=parse_channels(CONDITION))
    masks = unpack_masks(source["masks"], SLAB[-1])
    for place, row in enumerate(rows):
        flair, net2 = batch.x[place].numpy()
        np.testing.assert_array_equal(flair, source["flair"][row, 2].astype(np.float32))
        np.testing.assert_array_equal(net2, 2.0 * masks[row, 2, 2] - 1)
    assert batch.condition is not None
    assert batch.condition.shape == (2, len(CONDITION), *SLAB)
    assert batch.arm.tolist() == [0, NULL_ARM]  # case 0 has no arm


def test_absent_channels_and_dropped_ones_are_zero(tmp_path: Path) -> None:
    cases = tiny_cases(tmp_path)
    dropped = no_drops(2)
    dropped.arm[0] = True
    dropped.channels[0, 3] = True
    batch = cases.batch(
        np.array([1, 1]), dropped, null_arm=NULL_ARM, condition=parse_channels(CONDITION)
    )
    assert batch.condition is not None
    null = (batch.condition.flatten(2) == 0).all(2)
    absent = CONDITION.index("w000/gad")
    assert null.nonzero().tolist() == [[0, absent], [0, 3], [1, absent]]
    assert batch.arm.tolist() == [NULL_ARM, 0]


def test_stage_one_reads_no_condition(tmp_path: Path) -> None:
    batch = tiny_cases(tmp_path).batch(np.arange(3), no_drops(3), null_arm=NULL_ARM, condition=None)
    assert batch.condition is None
    assert batch.x.shape == (3, len(TARGET_CHANNELS), *SLAB)


def test_active_cases_are_those_with_a_lesion_at_w096(tmp_path: Path) -> None:
    cases = tiny_cases(tmp_path)
    assert cases.active.tolist() == [case % 3 == 0 for case in range(CASES)]


def test_workers_of_a_node_share_one_ingest_pass(tmp_path: Path) -> None:
    passes: list[CaseSelection] = []

    def read(cache: CaseSelection, columns: tuple[str, ...]) -> Iterable[Rows]:
        passes.append(cache)
        return given(random_rows())(cache, columns)

    cache = CaseSelection(
        Path("/no/store"), tuple(range(CASES)), "shared", (tmp_path,), SLAB, "inputs"
    )
    with ThreadPoolExecutor(4) as workers:
        folders = set(workers.map(lambda _: fill(cache, read).folder, range(4)))
    assert folders == {tmp_path / cache.name}
    assert len(passes) == 1


def test_blocks_may_come_in_any_order(tmp_path: Path) -> None:
    source = random_rows()
    backwards = {name: column[::-1] for name, column in source.items()}
    ordered, shuffled = (
        tiny_cache(tmp_path, source, "ordered"),
        tiny_cache(tmp_path, source, "shuffled"),
    )
    found = open_cases(replace(shuffled, digest="backwards"), given(backwards))
    expected = open_cases(ordered, given({}))
    for name in ("flair", "masks", "arm", "active"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_an_ingest_pass_that_misses_cases_leaves_no_cache(tmp_path: Path) -> None:
    cache = CaseSelection(Path("/no/store"), (0, 1, 99), "short", (tmp_path,), SLAB, "inputs")
    with pytest.raises(TrainingError, match=r"/no/store: expected cases \[99\]"):
        fill(cache, given(random_rows(2)))
    assert not (tmp_path / cache.name).exists()


def test_the_arrays_are_read_only(tmp_path: Path) -> None:
    cases = tiny_cases(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        cases.flair[0] = 0


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    for depth in (1, 2, 9):
        found = list(prefetch(lambda step: step**2, range(3, 6), depth=depth))
        assert found == [(3, 9), (4, 16), (5, 25)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda step: 1 // step, range(1)))
    assert torch.is_grad_enabled()
