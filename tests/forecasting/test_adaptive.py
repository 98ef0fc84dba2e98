"""Adaptive sampling: blocks of seeds, when to stop, and the notes on it."""

import numpy as np
import pytest

from lesioncast.forecasting.adaptive import (
    SamplingRequest,
    is_precise_enough,
    sampling_notes,
    sampling_rounds,
    split_into_blocks,
)
from lesioncast.forecasting.ensemble import DrawnCounts
from lesioncast.forecasting.sampling import sample_seeds

REQUEST = SamplingRequest(subject="sub-1", arms=("a", "b"), seed=3, samples=7, tolerance=0.2)


def test_blocks_hold_every_seed_of_every_arm_once() -> None:
    blocks = split_into_blocks(REQUEST, size=3)
    assert [(block.arm, block.first, len(block.seeds)) for block in blocks] == [
        ("a", 0, 3), ("b", 0, 3), ("a", 3, 3), ("b", 3, 3), ("a", 6, 1), ("b", 6, 1),
    ]  # fmt: skip
    for arm in REQUEST.arms:
        seeds = [seed for block in blocks if block.arm == arm for seed in block.seeds]
        assert tuple(seeds) == sample_seeds(3, "sub-1", 7)


def test_a_round_holds_all_blocks_or_with_a_tolerance_one_of_each_arm() -> None:
    blocks = split_into_blocks(REQUEST, size=3)
    assert list(sampling_rounds(blocks, tolerance=None)) == [blocks]
    assert list(sampling_rounds(blocks, tolerance=0.2)) == [blocks[:2], blocks[2:4], blocks[4:]]


@pytest.mark.parametrize(
    ("counts", "tolerance", "enough"),
    [
        ({"a": [0] * 100, "b": [2] * 100}, 0.05, True),
        ({"a": [0] * 100, "b": [0, 2] * 50}, 0.05, False),  # one arm is not precise
        ({"a": [0] * 4}, 0.05, False),  # all samples agree, but they are few
        ({"a": [0] * 40}, 0.05, False),  # up to 0.088 is possible, if nothing below 0
        ({"a": [0] * 100}, None, False),
    ],
)
def test_sampling_stops_once_every_arm_is_precise(
    counts: dict[str, list[int]], tolerance: float | None, enough: bool
) -> None:
    drawn = {
        arm: DrawnCounts(
            plain=np.array(plain), opened=np.zeros_like(plain), seeds=tuple(range(len(plain)))
        )
        for arm, plain in counts.items()
    }
    assert is_precise_enough(drawn, opening=False, tolerance=tolerance) is enough


def test_notes_name_the_tolerance_and_the_overrides() -> None:
    plain = SamplingRequest(subject="sub-1", arms=("a",), seed=0, samples=2)
    assert sampling_notes(plain) == ()
    steps = SamplingRequest(
        subject="sub-1", arms=("a",), seed=0, samples=2, sampler_overrides={"num_steps": 9}
    )
    assert sampling_notes(steps) == ("Drawn with num_steps 9 in place of the bundle's own.",)
    (note,) = sampling_notes(REQUEST)
    assert "was known to 0.2 under every arm" in note
    assert "or for 7 samples" in note
