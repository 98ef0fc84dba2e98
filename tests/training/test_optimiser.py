"""Learning rate, moving average, settings, and the progress of a run."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from lesioncast.diffusion.voxel_mlp import VoxelMLP
from lesioncast.errors import NonFiniteLossError
from lesioncast.training.progress import (
    MetricsWindow,
    append_metrics,
    progress_line,
    read_metrics,
    truncate_metrics,
)
from lesioncast.training.settings import NON_IDENTITY_FIELDS, TrainSettings
from lesioncast.training.state import ema_decay, initial_state, learning_rate, update_ema
from tests.support.training import SETTINGS


def test_moving_average_equals_its_closed_form() -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    averaged = {"w": values[0].clone()}
    for step, value in enumerate(values[1:]):
        update_ema(averaged, {"w": value}, ema_decay(step, 0.8))
    decays = torch.tensor([min(0.8, (1 + step) / (10 + step)) for step in range(49)])
    kept = torch.cat([decays.flip(0).cumprod(0).flip(0), torch.ones(1)])
    share = kept * torch.cat([torch.ones(1), 1 - decays])
    torch.testing.assert_close(averaged["w"], (share[:, None] * values).sum(0))
    assert float(share.sum()) == pytest.approx(1)


def test_learning_rate_rises_linearly_and_decays_as_a_cosine() -> None:
    settings = TrainSettings(steps=100, warmup=10, learning_rate=2.0)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_voxel_perceptrons_may_learn_at_another_rate() -> None:
    class Networks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.voxels = nn.Linear(2, 2), VoxelMLP(3, 2, embedding=4)

    networks, settings = Networks(), TrainSettings(steps=10, warmup=0, voxel_rate=2.5)
    state = initial_state(networks, settings)
    for parameter in networks.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.update(settings)
    rates = {
        id(weight): group["lr"]
        for group in state.optimizer.param_groups
        for weight in group["params"]
    }
    assert {rates[id(weight)] for weight in networks.layer.parameters()} == {1e-4}
    assert {rates[id(weight)] for weight in networks.voxels.parameters()} == {2.5e-4}
    assert len(rates) == len(list(networks.parameters()))


def test_non_finite_loss_stops_with_its_step() -> None:
    window = MetricsWindow("pretrain")
    for step, loss in [(11, 1.0), (12, float("nan")), (13, float("nan"))]:
        window.record(step, torch.tensor(loss), torch.tensor(loss))
    with pytest.raises(
        NonFiniteLossError, match=r"pretrain: expected a finite .* got loss nan .* at step 12"
    ):
        window.close(batch_size=4)


def test_infinite_gradient_norm_stops_with_its_step() -> None:
    window = MetricsWindow("pretrain")
    window.record(5, torch.tensor(0.1), torch.tensor(float("inf")))
    with pytest.raises(NonFiniteLossError, match="gradient norm inf at step 5"):
        window.close(batch_size=4)


@pytest.mark.parametrize(
    ("rate", "left"), [(10.0, "48 s left"), (3.1, "3 min left"), (0.05, "2.7 h left")]
)
def test_progress_line_shows_the_remaining_time(rate: float, left: str) -> None:
    line = progress_line({"step": 120, "loss": 0.01234, "steps_per_s": rate}, steps=600)
    assert line == f"step 120/600  loss 0.0123  {rate:g} steps/s  {left}"


def test_truncate_metrics_removes_lines_after_the_checkpoint(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        append_metrics(tmp_path, {"step": step, "loss": 1.0})
    truncate_metrics(tmp_path, 4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected 1 or more, got 0"),
        ({"arm_dropout": 1.0}, "arm_dropout: expected from 0 to below 1, got 1.0"),
        ({"workers": 5}, r"workers: expected at most one per case of a batch \(4\), got 5"),
        ({"precision": "float16"}, "precision: expected float32 or bfloat16, got float16"),
    ],
)
def test_invalid_settings_are_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_non_identity_fields_are_settings() -> None:
    assert set(NON_IDENTITY_FIELDS) <= {field.name for field in dataclasses.fields(TrainSettings)}
