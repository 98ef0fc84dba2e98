"""The paper's training recipe, claim by claim: inputs, gradients and dropout of each stage."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lesioncast.config import load_config
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.settings.networks import ControlConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, ScheduleConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.training import randomness
from lesioncast.training.checkpoint import Checkpoint
from lesioncast.training.data.dataset import Batch
from lesioncast.training.data.node_cache import open_cases, read_in_process
from lesioncast.training.experiment import Stage, finetune_stage, pretrain_stage
from lesioncast.training.loop import batch_loss, batches
from lesioncast.training.modules import FinetuneModule, PretrainModule
from lesioncast.training.settings import DropoutRates, TrainSettings
from lesioncast.training.state import initial_state
from lesioncast.training.worker import Worker
from tests.diffusion.test_networks import randomise
from tests.support.training import (
    CASES,
    MODEL,
    SETTINGS,
    SLAB,
    random_rows,
    tiny_cache,
    tiny_experiment,
)

PAPER = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "paper.yaml"
ARM = 0


def lone_worker(settings: TrainSettings) -> Worker:
    return Worker(0, 1, torch.device("cpu"), np.arange(settings.batch_size))


def networks(control: ControlConfig = MODEL.control, loads: tuple[int, ...] = ()) -> FinetuneModule:
    """Return stage 2 at its first step, on a UNet of random weights."""
    torch.manual_seed(0)
    unet = UNet(replace(MODEL.unet, lesion_load_thresholds=loads))
    randomise(unet)
    return FinetuneModule(unet, ControlNet.from_unet(control, unet))


def stage_two(root: Path, settings: TrainSettings) -> Stage:
    """Return the run of stage 2 on cases that have an arm and every channel."""
    rows = random_rows()
    rows["arm"][:] = ARM
    rows["present"][:] = True
    experiment = tiny_experiment(root, tiny_cache(root / "cache", rows))
    return finetune_stage(settings, experiment, Checkpoint(root / "unused", 1, {}, {}))


def first_batches(stage: Stage, *, steps: int) -> Iterator[Batch]:
    """Yield the batches of the first steps of `stage`."""
    stage = replace(stage, settings=replace(stage.settings, steps=steps))
    cases = open_cases(stage.experiment.cases, read_in_process)
    for _, batch in batches(stage, cases, lone_worker(stage.settings), first=0):
        yield batch


@pytest.mark.parametrize("reduced", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("control", [MODEL.control, ControlConfig(burden=True, voxel_mlp_width=4)])
@pytest.mark.parametrize("loads", [(), (1, 5)], ids=["", "loads"])
@torch.no_grad()
def test_stage_two_starts_with_the_predictions_of_stage_one_to_the_last_bit(
    control: ControlConfig, reduced: bool, loads: tuple[int, ...]
) -> None:
    second = networks(control, loads)
    first = PretrainModule(second.unet)
    z, condition = torch.randn(4, 2, *SLAB), torch.randn(4, 7, *SLAB)
    logsnr, arm = torch.linspace(-10, 10, 4), torch.tensor([0, 1, 2, 2])
    load = torch.tensor([1, 2, 1, 2]) if loads else None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=reduced):
        batch = Batch(z, arm, condition)
        expected = first(z, logsnr, batch, load)
        actual = second(z, logsnr, batch, load)
    assert torch.equal(actual, expected)
    randomise(second.control.zero_middle)
    other = second(z, logsnr, batch, load)
    assert not torch.equal(other, expected)


def test_stage_two_trains_the_controlnet_and_changes_no_bit_of_the_unet(tmp_path: Path) -> None:
    settings = replace(SETTINGS, batch_size=4, warmup=0)
    stage, both = stage_two(tmp_path, settings), networks().train()
    state = initial_state(both, settings)
    before = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    for step, batch in enumerate(first_batches(stage, steps=4)):
        loss = batch_loss(both, batch, step, stage=stage, worker=lone_worker(settings))
        loss.backward()
        assert all(parameter.grad is None for parameter in both.unet.parameters())
        state.update(settings)
    after = both.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved
    assert all(name.startswith("control.") for name in moved)
    # Past the first step the zero convolutions let gradients through to all that they hold back.
    assert {name for name in before if name.startswith("control.")} == moved
    optimised = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in both.control.parameters()}


@pytest.mark.parametrize("loads", [(), (1, 19)], ids=["", "loads"])
@torch.no_grad()
def test_loss_of_a_batch_is_the_mean_over_its_shares_on_workers(
    tmp_path: Path, loads: tuple[int, ...]
) -> None:
    """Only the third case of the batch has lesions, so that one worker's share has none."""
    settings = replace(SETTINGS, batch_size=4)
    stage = stage_two(tmp_path, settings)
    both, batch = networks(loads=loads), next(first_batches(stage, steps=1))
    model = replace(MODEL, unet=replace(MODEL.unet, lesion_load_thresholds=loads))
    stage = replace(stage, experiment=replace(stage.experiment, model=model))
    batch.x[[0, 1, 3], 1] = -1
    batch.x[2, 1, 0, 0, :3] = 1
    whole = batch_loss(both, batch, 5, stage=stage, worker=lone_worker(settings))
    shares = []
    for positions in (np.array([0, 2]), np.array([1, 3])):
        rows = torch.from_numpy(positions)
        assert batch.condition is not None
        share = replace(
            batch, x=batch.x[rows], arm=batch.arm[rows], condition=batch.condition[rows]
        )
        worker = Worker(0, 2, torch.device("cpu"), positions)
        shares.append(batch_loss(both, share, 5, stage=stage, worker=worker))
    torch.testing.assert_close(torch.stack(shares).mean(), whole)


def within(count: int, *, of: int, rate: float) -> bool:
    """Return True if a count is within four standard deviations of its binomial mean."""
    return abs(count - of * rate) < 4 * math.sqrt(of * rate * (1 - rate))


@pytest.mark.parametrize(("arm_dropout", "condition_dropout"), [(0.15, 0.15), (0.1, 0.4)])
def test_arm_and_images_are_dropped_independently_at_their_rates(
    arm_dropout: float, condition_dropout: float
) -> None:
    rates = DropoutRates(arm=arm_dropout, condition=condition_dropout)
    steps = [
        randomness.condition_dropout(
            7, step, batch_size=16, post_baseline=np.zeros(7, bool), rates=rates
        )
        for step in range(4000)
    ]
    arm = np.concatenate([dropout.arm for dropout in steps])
    channels = np.concatenate([dropout.channels for dropout in steps])
    images = channels.all(1)
    assert (channels.any(1) == images).all()  # all of c_f or nothing of it
    assert within(arm.sum(), of=len(arm), rate=arm_dropout)
    assert within(images.sum(), of=len(arm), rate=condition_dropout)
    assert within((arm & images).sum(), of=len(arm), rate=arm_dropout * condition_dropout)


def test_stage_two_drops_arm_and_images_at_its_rates(
    tmp_path: Path,
) -> None:
    settings = replace(
        SETTINGS, batch_size=10, arm_dropout=0.3, condition_dropout=0.1, channel_dropout=0.0
    )
    batches_of_stage = list(first_batches(stage_two(tmp_path, settings), steps=150))
    arm = torch.cat([batch.arm for batch in batches_of_stage])
    images = torch.cat([has_condition(batch.condition) for batch in batches_of_stage])
    null_arm = arm == MODEL.unet.null_arm
    assert ((arm == ARM) | null_arm).all()
    assert within(int(null_arm.sum()), of=1500, rate=0.3)
    assert within(int((~images).sum()), of=1500, rate=0.1)
    assert within(int((null_arm & ~images).sum()), of=1500, rate=0.03)


def has_condition(condition: Tensor | None) -> Tensor:
    """Return which cases have a c_f, bool [b]."""
    assert condition is not None
    return condition.flatten(1).any(1)


def test_stage_one_has_no_images_and_drops_the_arm_at_its_rate(tmp_path: Path) -> None:
    rows = random_rows()
    rows["arm"][:] = ARM
    experiment = tiny_experiment(tmp_path, tiny_cache(tmp_path / "cache", rows))
    settings = replace(SETTINGS, batch_size=10, arm_dropout=0.1, condition_dropout=0.9)
    batches_of_stage = list(first_batches(pretrain_stage(settings, experiment), steps=150))
    assert all(batch.condition is None for batch in batches_of_stage)
    arm = torch.cat([batch.arm for batch in batches_of_stage])
    assert within(int((arm == MODEL.unet.null_arm).sum()), of=1500, rate=0.1)


@pytest.mark.parametrize(("balanced", "share"), [(True, 0.5), (False, 0.4)])
def test_balanced_stage_has_as_many_active_as_inactive_cases(
    tmp_path: Path, balanced: bool, share: float
) -> None:
    """Four of ten cases are active, so that a balanced epoch has four of each kind."""
    settings = replace(SETTINGS, balanced=balanced, batch_size=8 if balanced else CASES)
    for batch in first_batches(stage_two(tmp_path, settings), steps=5):
        active = (batch.x[:, 1] > 0).flatten(1).any(1)
        assert active.float().mean().item() == pytest.approx(share)


def test_only_active_cases_are_read_for_a_model_with_lesion_loads(tmp_path: Path) -> None:
    """The rest of the batch has loss 0. Four of ten cases are active."""
    settings = replace(SETTINGS, batch_size=5)
    stage = stage_two(tmp_path, settings)
    model = replace(MODEL, unet=replace(MODEL.unet, lesion_load_thresholds=(1, 5)))
    of_loads = replace(stage, experiment=replace(stage.experiment, model=model))
    for read, whole in zip(
        first_batches(of_loads, steps=20), first_batches(stage, steps=20), strict=True
    ):
        active = (whole.x[:, 1] > 0).flatten(1).any(1)
        rows = active.nonzero().flatten() if active.any() else torch.tensor([0])
        assert torch.equal(read.x, whole.x[rows])
        assert read.condition is not None
        assert whole.condition is not None
        assert torch.equal(read.condition, whole.condition[rows])


def test_paper_preset_has_the_papers_settings() -> None:
    """The settings are those of sections 2 and 3, or choices of the preset if not stated there."""
    config = load_config(PAPER)
    first, second = config.pretrain, config.finetune
    assert (first.steps, first.batch_size, second.steps, second.batch_size) == (
        100_000, 16, 40_000, 16,
    )  # fmt: skip
    assert (first.balanced, second.balanced) == (False, True)
    assert (first.arm_dropout, first.condition_dropout) == (0.1, 0.0)
    assert (second.arm_dropout, second.condition_dropout) == (0.15, 0.15)
    for stage in (first, second):
        assert (stage.channel_dropout, stage.session_dropout, stage.flair_weight) == (0, 0, None)
        assert (stage.gradient_clip, stage.warmup) == (1.0, 1000)
    assert (first.learning_rate, first.ema) == (1e-4, 0.9999)
    assert (second.learning_rate, second.ema) == (5e-5, 0.999)
    assert config.objective == ObjectiveConfig("v", "min_snr", 5.0, "squared", lesion_weight=10.0)
    assert config.schedule == ScheduleConfig(2 * math.log(32 / 256), 2 * math.log(128 / 256))
    assert config.store.slab == (15, 256, 256)
