"""Which cases, noise levels and drops a step sees."""

import numpy as np
import pytest
import torch

from lesioncast.diffusion.controlnet import CONDITION
from lesioncast.imaging.channels import BASELINE_SESSION, channels_outside_sessions, parse_channels
from lesioncast.training import randomness
from lesioncast.training.data.order import active_first, batch_rows, epoch_rows, worker_positions

ACTIVE = np.arange(30) % 5 == 0  # 6 active, 24 inactive


def rows_at(step: int, *, balanced: bool = False, batch_size: int = 7) -> list[int]:
    rows = batch_rows(ACTIVE, step, seed=3, batch_size=batch_size, balanced=balanced)
    return list(map(int, rows))


def test_every_epoch_shows_every_case_once() -> None:
    stream = [row for step in range(30) for row in rows_at(step)]
    for epoch in range(7):
        assert sorted(stream[30 * epoch : 30 * (epoch + 1)]) == list(range(30))
    assert stream[:30] != stream[30:60]


def test_a_batch_larger_than_an_epoch_goes_on_into_the_next_ones() -> None:
    stream = [row for step in range(10) for row in rows_at(step)]
    assert rows_at(0, batch_size=70) == stream


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_the_workers_together_compute_each_place_in_a_batch_once(world_size: int) -> None:
    shares = [
        worker_positions(rank, world_size=world_size, batch_size=7) for rank in range(world_size)
    ]
    assert sorted(np.concatenate(shares)) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_balanced_epoch_has_as_many_inactive_as_active_cases() -> None:
    epochs = [epoch_rows(ACTIVE, seed=3, epoch=epoch, balanced=True) for epoch in range(40)]
    for rows in epochs:
        assert len(rows) == len(set(rows)) == 12
        assert ACTIVE[rows].sum() == 6
    seen = set(np.concatenate(epochs))
    assert seen == set(range(30))  # the inactive subset is drawn afresh each epoch


def test_every_worker_has_as_many_active_cases_of_a_batch() -> None:
    rows = np.array([5, 1, 2, 10, 3, 4, 15, 6])
    ordered = active_first(rows, ACTIVE)
    assert ordered.tolist() == [5, 10, 15, 1, 2, 3, 4, 6]
    shares = [worker_positions(rank, world_size=2, batch_size=8) for rank in range(2)]
    assert [ACTIVE[ordered[share]].sum() for share in shares] == [2, 1]


def test_balance_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="got 0 and 4; set balanced to false"):
        epoch_rows(np.zeros(4, bool), seed=0, epoch=0, balanced=True)


def test_t_covers_the_noise_levels_evenly_at_every_step_and_uniformly_over_steps() -> None:
    t = np.stack([randomness.stratified_timesteps(1, step, batch_size=16) for step in range(2000)])
    assert (t >= 0).all()
    assert (t < 1).all()
    for places in (t, t[:, :5], t[:, ::2]):  # the batch, its beginning, one worker's share
        gaps = np.diff(np.sort(places, axis=1), append=places.min(axis=1, keepdims=True) + 1)
        assert gaps.max() < 2.7 / places.shape[1]  # drawn by lot, 3.4 of 16 on average
    # Uniform over steps: the first place's mean, with standard error 0.0065.
    assert abs(t[:, 0].mean() - 0.5) < 0.026


def test_drops_happen_at_their_rates_and_independently() -> None:
    rates = {"arm_dropout": 0.3, "condition_dropout": 0.2, "channel_dropout": 0.1}
    drawn = randomness.condition_dropout(5, 0, batch_size=20_000, channels=7, **rates)
    whole = drawn.channels.all(1)
    assert abs(drawn.arm.mean() - 0.3) < 0.013  # four standard errors
    assert abs(whole.mean() - 0.2) < 0.012
    assert np.abs(drawn.channels[~whole].mean(0) - 0.1).max() < 0.011
    columns = np.column_stack([drawn.arm, whole, drawn.channels[:, 0]])[~whole][:, [0, 2]]
    assert abs(np.corrcoef(columns.T)[0, 1]) < 0.032
    assert abs(np.corrcoef(drawn.arm, whole)[0, 1]) < 0.03


def test_later_sessions_drop_at_their_rate_and_leave_the_other_drops_alone() -> None:
    rates = {"arm_dropout": 0.3, "condition_dropout": 0.2, "channel_dropout": 0.1}
    later = channels_outside_sessions(parse_channels(CONDITION), (BASELINE_SESSION,))
    assert [name for name, dropped in zip(CONDITION, later, strict=True) if not dropped] == [
        "w000/flair", "w000/t2", "w000/gad",
    ]  # fmt: skip
    size = {"batch_size": 20_000, "channels": 7}
    before = randomness.condition_dropout(5, 0, **size, **rates)
    drawn = randomness.condition_dropout(5, 0, **size, **rates, later=later, session_dropout=0.25)
    np.testing.assert_array_equal(before.arm, drawn.arm)
    np.testing.assert_array_equal(before.channels[:, ~later], drawn.channels[:, ~later])
    none = dict.fromkeys(rates, 0.0)
    alone = randomness.condition_dropout(
        5, 0, **size, **none, later=later, session_dropout=0.25
    ).channels
    np.testing.assert_array_equal(alone, alone.any(1)[:, None] & later)
    assert abs(alone.any(1).mean() - 0.25) < 0.013  # four standard errors
    others = np.column_stack([drawn.arm, before.channels.all(1), alone.any(1)])
    assert np.abs(np.corrcoef(others.T) - np.eye(3)).max() < 0.03


def test_a_case_draws_the_same_noise_on_whichever_worker() -> None:
    def drawn(step: int, positions: list[int]) -> torch.Tensor:
        where = {"shape": (2, 3, 4), "device": torch.device("cpu")}
        return randomness.gaussian(9, step, positions=np.array(positions), **where)

    alone, shared = drawn(4, [0, 1, 2, 3]), drawn(4, [1, 3])
    assert torch.equal(alone[[1, 3]], shared)
    assert not torch.equal(drawn(5, [0]), alone[:1])
    many = randomness.gaussian(
        9, 0, positions=np.arange(400), shape=(50,), device=torch.device("cpu")
    )
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.02
