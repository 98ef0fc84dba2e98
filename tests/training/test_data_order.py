"""Order of the cases, noise levels, noise and dropout of a training step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesioncast.diffusion.settings.networks import CONDITION
from lesioncast.imaging.channels import BASELINE, channels_outside_sessions, parse_channels
from lesioncast.training import randomness
from lesioncast.training.data.order import active_first, batch_rows, epoch_rows, worker_positions
from lesioncast.training.settings import DropoutRates

ACTIVE = np.arange(30) % 5 == 0  # 6 active, 24 inactive
RATES = DropoutRates(arm=0.3, condition=0.2, channel=0.1)


def rows_at(step: int, *, balanced: bool = False, batch_size: int = 7) -> list[int]:
    rows = batch_rows(ACTIVE, step, seed=3, batch_size=batch_size, balanced=balanced)
    return list(map(int, rows))


def test_every_epoch_has_every_case_once() -> None:
    stream = [row for step in range(30) for row in rows_at(step)]
    for epoch in range(7):
        assert sorted(stream[30 * epoch : 30 * (epoch + 1)]) == list(range(30))
    assert stream[:30] != stream[30:60]


def test_batch_larger_than_an_epoch_continues_in_the_next_epochs() -> None:
    stream = [row for step in range(10) for row in rows_at(step)]
    assert rows_at(0, batch_size=70) == stream


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_workers_together_compute_each_position_of_a_batch_once(world_size: int) -> None:
    shares = [
        worker_positions(rank, world_size=world_size, batch_size=7) for rank in range(world_size)
    ]
    assert sorted(np.concatenate(shares)) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_balanced_epoch_has_as_many_inactive_as_active_cases() -> None:
    epochs = [epoch_rows(ACTIVE, seed=3, epoch=epoch, balanced=True) for epoch in range(40)]
    for rows in epochs:
        assert len(rows) == len(set(rows)) == 12
        assert ACTIVE[rows].sum() == 6
    seen = set(np.concatenate(epochs))
    assert seen == set(range(30))  # the inactive subset is drawn afresh each epoch


def test_active_cases_of_a_batch_are_shared_evenly_among_workers() -> None:
    rows = np.array([5, 1, 2, 10, 3, 4, 15, 6])
    ordered = active_first(rows, ACTIVE)
    assert ordered.tolist() == [5, 10, 15, 1, 2, 3, 4, 6]
    shares = [worker_positions(rank, world_size=2, batch_size=8) for rank in range(2)]
    assert [ACTIVE[ordered[share]].sum() for share in shares] == [2, 1]


def test_balanced_sampling_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="got 0 and 4; set balanced to false"):
        epoch_rows(np.zeros(4, bool), seed=0, epoch=0, balanced=True)


def test_noise_levels_are_stratified_within_a_step_and_uniform_over_steps() -> None:
    t = np.stack([randomness.stratified_timesteps(1, step, batch_size=16) for step in range(2000)])
    assert (t >= 0).all()
    assert (t < 1).all()
    for levels in (t, t[:, :5], t[:, ::2]):  # the batch, its prefix, one worker's share
        gaps = np.diff(np.sort(levels, axis=1), append=levels.min(axis=1, keepdims=True) + 1)
        assert gaps.max() < 2.7 / levels.shape[1]  # independent draws: 3.4 of 16 on average
    # Uniform over steps: the mean of the first position has the standard error 0.0065.
    assert abs(t[:, 0].mean() - 0.5) < 0.026


def test_dropout_is_independent_and_at_its_rates() -> None:
    dropout = randomness.condition_dropout(
        5, 0, batch_size=20_000, post_baseline=np.zeros(7, bool), rates=RATES
    )
    whole = dropout.channels.all(1)
    assert abs(dropout.arm.mean() - 0.3) < 0.013  # four standard errors
    assert abs(whole.mean() - 0.2) < 0.012
    assert np.abs(dropout.channels[~whole].mean(0) - 0.1).max() < 0.011
    columns = np.column_stack([dropout.arm, whole, dropout.channels[:, 0]])[~whole][:, [0, 2]]
    assert abs(np.corrcoef(columns.T)[0, 1]) < 0.032
    assert abs(np.corrcoef(dropout.arm, whole)[0, 1]) < 0.03


def test_session_dropout_is_at_its_rate_and_leaves_other_dropout_unchanged() -> None:
    later = channels_outside_sessions(parse_channels(CONDITION), (BASELINE,))
    assert [name for name, dropped in zip(CONDITION, later, strict=True) if not dropped] == [
        "w000/flair", "w000/t2", "w000/gad",
    ]  # fmt: skip

    def draw(rates: DropoutRates) -> randomness.ConditionDropout:
        return randomness.condition_dropout(
            5, 0, batch_size=20_000, post_baseline=later, rates=rates
        )

    without, both = draw(RATES), draw(replace(RATES, session=0.25))
    np.testing.assert_array_equal(without.arm, both.arm)
    np.testing.assert_array_equal(without.channels[:, ~later], both.channels[:, ~later])
    alone = draw(DropoutRates(session=0.25)).channels
    np.testing.assert_array_equal(alone, alone.any(1)[:, None] & later)
    assert abs(alone.any(1).mean() - 0.25) < 0.013  # four standard errors
    others = np.column_stack([both.arm, without.channels.all(1), alone.any(1)])
    assert np.abs(np.corrcoef(others.T) - np.eye(3)).max() < 0.03


def test_noise_of_a_case_does_not_depend_on_the_worker() -> None:
    def noise(step: int, positions: list[int]) -> torch.Tensor:
        options = {"shape": (2, 3, 4), "device": torch.device("cpu")}
        return randomness.gaussian(9, step, positions=np.array(positions), **options)

    alone, shared = noise(4, [0, 1, 2, 3]), noise(4, [1, 3])
    assert torch.equal(alone[[1, 3]], shared)
    assert not torch.equal(noise(5, [0]), alone[:1])
    many = randomness.gaussian(
        9, 0, positions=np.arange(400), shape=(50,), device=torch.device("cpu")
    )
    assert abs(float(many.mean())) < 0.03
    assert abs(float(many.std()) - 1) < 0.02
