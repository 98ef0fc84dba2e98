"""Complete runs of both stages, in this process and on two workers of a cluster."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from errno import ESTALE
from pathlib import Path

import pytest
import ray
import torch
from ray.train.v2.api.preemption import PreemptionInfo
from safetensors.torch import load_file
from torch import Tensor, nn

from lesioncast.errors import (
    ChangedSettingsError,
    NonFiniteLossError,
    NonFiniteStateError,
    TrainingError,
)
from lesioncast.training.checkpoint import Checkpoint, checkpoints, save_checkpoint
from lesioncast.training.data.dataset import Batch
from lesioncast.training.experiment import (
    CONTROL,
    UNET,
    Stage,
    _controlled_unet,
    finetune_stage,
    pretrain_stage,
)
from lesioncast.training.progress import METRICS, read_metrics
from lesioncast.training.settings import TrainSettings
from lesioncast.training.state import initial_state
from lesioncast.training.trainer import discard, final_checkpoint, train
from lesioncast.training.worker import PreemptionNotices
from tests.support.training import SETTINGS, SLAB, random_rows, tiny_cache, tiny_experiment


class FaultyNetworks(nn.Module):
    """Networks that call `fault` at one of their forward passes."""

    def __init__(self, networks: nn.Module, at: int, fault: Callable[[], float]) -> None:
        super().__init__()
        self.networks, self.at, self.fault, self.passes = networks, at, fault, 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.passes += 1
        factor = self.fault() if self.passes == self.at else 1.0
        prediction: Tensor = self.networks(*inputs)
        return prediction * factor

    def named_parameters(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def, override]
        return self.networks.named_parameters(*args, **kwargs)


def with_fault(stage: Stage, *, at: int, fault: Callable[[], float]) -> Stage:
    """Return `stage` with networks that fail at their `at`-th pass."""
    return replace(stage, networks=lambda own: FaultyNetworks(stage.networks(own), at, fault))


def interrupt() -> float:
    raise KeyboardInterrupt


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    files = sorted(checkpoint.folder.glob("*.safetensors"))
    # Copies: loaded tensors are memory maps, which change with the file.
    return {f"{path.stem}/{k}": v.clone() for path in files for k, v in load_file(path).items()}


def both_stages(
    runs: Path, settings: TrainSettings = SETTINGS, *, loads: tuple[int, ...] = ()
) -> tuple[Checkpoint, Stage]:
    experiment = tiny_experiment(runs)
    unet = replace(experiment.model.unet, lesion_load_thresholds=loads)
    experiment = replace(experiment, model=replace(experiment.model, unet=unet))
    pretrained = train(pretrain_stage(settings, experiment))
    return pretrained, finetune_stage(settings, experiment, pretrained)


@pytest.mark.parametrize("pass_of_failure", [4, 6])
@pytest.mark.parametrize("loads", [(), (1, 19)], ids=["", "loads"])
def test_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, pass_of_failure: int, loads: tuple[int, ...]
) -> None:
    _, stage = both_stages(tmp_path / "complete", loads=loads)
    complete = train(stage)

    _, stage = both_stages(tmp_path / "interrupted", loads=loads)
    with pytest.raises(KeyboardInterrupt):
        train(with_fault(stage, at=pass_of_failure, fault=interrupt))
    assert [checkpoint.step for checkpoint in checkpoints(stage.folder)] == [3]
    resumed = train(stage)

    expected, actual = tensors(complete), tensors(resumed)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    lines = [
        [(line["step"], line["loss"]) for line in read_metrics(checkpoint.folder.parent)]
        for checkpoint in (complete, resumed)
    ]
    assert lines[0] == lines[1]


def test_stage_two_keeps_the_averaged_unet_of_stage_one(tmp_path: Path) -> None:
    pretrained, stage = both_stages(tmp_path)
    last = train(stage)
    networks = stage.build()
    frozen = networks.get_submodule("unet").state_dict()
    for name, tensor in pretrained.tensors("ema", UNET).items():
        assert torch.equal(frozen[name], tensor), name
    trained = last.tensors("weights")
    assert trained
    assert all(name.startswith(CONTROL) for name in trained)
    start = dict(networks.named_parameters())
    assert any(not torch.equal(tensor, start[name]) for name, tensor in trained.items())


def test_frozen_unet_keeps_its_weights_through_training(tmp_path: Path) -> None:
    _, stage = both_stages(tmp_path)
    built: list[nn.Module] = []

    def remember(own: Stage) -> nn.Module:
        built.append(_controlled_unet(own))
        return built[0]

    train(replace(stage, networks=remember))
    before, after = stage.build().get_submodule("unet"), built[0].get_submodule("unet")
    assert not after.training
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name


def test_non_finite_loss_stops_the_run_at_its_step(tmp_path: Path) -> None:
    stage = with_fault(
        pretrain_stage(SETTINGS, tiny_experiment(tmp_path)), at=5, fault=lambda: torch.nan
    )
    with pytest.raises(
        NonFiniteLossError, match="pretrain: expected a finite .* got loss nan .* at step 5;"
    ):
        train(stage)
    assert [checkpoint.step for checkpoint in checkpoints(stage.folder)] == [3]


def test_a_preemption_notice_saves_no_weights_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, log_every=6, checkpoint_every=2)
    stage = pretrain_stage(settings, tiny_experiment(tmp_path))
    notices = iter([None, PreemptionInfo(None, {"a node": [0]}), None])
    monkeypatch.setattr(PreemptionNotices, "new", lambda _: next(notices))
    with pytest.raises(NonFiniteStateError, match=r"step_000003: expected finite weights, got"):
        train(with_fault(stage, at=3, fault=lambda: torch.nan))
    assert [checkpoint.step for checkpoint in checkpoints(stage.folder)] == [2]


def test_a_step_that_overflows_the_weights_saves_no_checkpoint(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e39, warmup=1, steps=1)
    stage = pretrain_stage(settings, tiny_experiment(tmp_path))
    with pytest.raises(NonFiniteStateError, match="expected finite weights"):
        train(stage)
    assert checkpoints(stage.folder) == []


@pytest.mark.parametrize("group", ["weights", "ema", "exp_avg", "exp_avg_sq"])
def test_no_part_of_a_checkpoint_may_be_non_finite(tmp_path: Path, group: str) -> None:
    stage = pretrain_stage(SETTINGS, tiny_experiment(tmp_path))
    state = initial_state(stage.build(), SETTINGS)
    for parameter in state.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state.update(SETTINGS)
    save_checkpoint(stage.folder, state, {})
    with torch.no_grad():
        state.tensors()[group]["unet.out.2.weight"].flatten()[-1] = torch.inf
    state.step = 2
    with pytest.raises(NonFiniteStateError, match=f"expected finite {group}, .* in unet.out.2"):
        save_checkpoint(stage.folder, state, {})
    assert [path.name for path in stage.folder.iterdir()] == ["step_000001"]


def test_finished_run_is_not_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = pretrain_stage(SETTINGS, tiny_experiment(tmp_path))
    last = train(stage)
    written = (last.folder / "state.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "lesioncast"):
        again = train(stage)
    assert again == last
    assert (last.folder / "state.json").stat().st_mtime_ns == written
    assert caplog.messages[-1].startswith("pretrain: finished already at step 6")
    discard(stage)
    assert checkpoints(stage.folder) == []
    with pytest.raises(TrainingError, match=r"got none; run jobs/pretrain.py first"):
        final_checkpoint(stage)


def test_changed_settings_are_refused_by_name(tmp_path: Path) -> None:
    stage = pretrain_stage(SETTINGS, tiny_experiment(tmp_path))
    train(stage)
    other = replace(SETTINGS, steps=9, learning_rate=0.5, log_every=1, checkpoint_every=9)
    with pytest.raises(ChangedSettingsError) as refusal:
        train(replace(stage, settings=other))
    message = str(refusal.value)
    assert "pretrain.steps was 6, is 9; pretrain.learning_rate was 0.01, is 0.5. Set" in message
    assert "--fresh" in message


def test_run_on_other_cases_is_refused(tmp_path: Path) -> None:
    train(pretrain_stage(SETTINGS, tiny_experiment(tmp_path)))
    other = tiny_experiment(tmp_path, tiny_cache(tmp_path, random_rows(seed=1), "other"))
    with pytest.raises(ChangedSettingsError, match='cases was "tiny", is "other"'):
        train(pretrain_stage(SETTINGS, other))


def alter(folder: Path) -> None:
    """Flip one bit of the averaged weights."""
    ema = folder / "ema.safetensors"
    content = bytearray(ema.read_bytes())
    content[-1] ^= 1
    ema.write_bytes(content)


def cut(folder: Path) -> None:
    """Truncate state.json, as after a power cut."""
    record = folder / "state.json"
    record.write_bytes(record.read_bytes()[:40])


def lose(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


@pytest.mark.parametrize("corrupt", [alter, cut, lose])
def test_corrupt_checkpoint_is_renamed_and_the_run_resumes_from_an_older_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, corrupt: Callable[[Path], None]
) -> None:
    settings = replace(SETTINGS, checkpoint_every=2, keep_checkpoints=3)
    complete = train(pretrain_stage(settings, tiny_experiment(tmp_path / "complete")))
    stage = pretrain_stage(settings, tiny_experiment(tmp_path / "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        train(with_fault(stage, at=5, fault=interrupt))
    corrupt(stage.folder / "step_000004")
    resumed = train(stage)
    assert "renamed to .step_000004.altered, resuming from an older checkpoint" in caplog.text
    expected, actual = tensors(complete), tensors(resumed)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    assert [checkpoint.step for checkpoint in checkpoints(stage.folder)] == [2, 4, 6]


def test_a_disk_that_does_not_answer_alters_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = pretrain_stage(SETTINGS, tiny_experiment(tmp_path))
    last = train(stage)

    def stale(_: Path) -> object:
        raise OSError(ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("lesioncast.training.checkpoint.read_json", stale)
        with pytest.raises(OSError, match="Stale file handle"):
            train(stage)
    assert train(stage) == last


def test_finished_run_with_a_corrupt_last_checkpoint_is_finished_again(tmp_path: Path) -> None:
    stage = pretrain_stage(SETTINGS, tiny_experiment(tmp_path))
    expected = tensors(train(stage))
    alter(stage.folder / "step_000006")
    for name, tensor in tensors(train(stage)).items():
        assert torch.equal(expected[name], tensor), name


def test_incomplete_last_line_of_the_metrics_is_skipped(tmp_path: Path) -> None:
    stage = pretrain_stage(SETTINGS, tiny_experiment(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train(with_fault(stage, at=5, fault=interrupt))
    with (stage.folder / METRICS).open("a") as log:
        log.write('{"step": 4, "lo')
    train(stage)
    assert [line["step"] for line in read_metrics(stage.folder)] == [2, 3, 4, 6]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_every=1)
    stage = pretrain_stage(settings, tiny_experiment(tmp_path))
    train(stage)
    assert [checkpoint.step for checkpoint in checkpoints(stage.folder)] == [5, 6]


def test_flair_weight_zero_trains_net2_alone(tmp_path: Path) -> None:
    stage = pretrain_stage(replace(SETTINGS, flair_weight=0.0), tiny_experiment(tmp_path))
    assert stage.objective.flair_weight == 0
    assert stage.experiment.model.objective.flair_weight == 1
    train(stage)
    out = checkpoints(stage.folder)[-1].tensors("exp_avg")["unet.out.2.weight"]
    flair, net2 = out.chunk(2)  # rows are channels of [c, s], patch 1
    assert not flair.any()
    assert net2.any()


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    settings = replace(SETTINGS, precision="bfloat16", steps=2)
    last = train(pretrain_stage(settings, tiny_experiment(tmp_path)))
    assert {tensor.dtype for tensor in last.tensors("weights").values()} == {torch.float32}


@pytest.mark.parametrize("stage_number", [1, 2])
@pytest.mark.parametrize("loads", [(), (1, 19)], ids=["", "loads"])
def test_every_trained_weight_gets_a_gradient(
    tmp_path: Path, stage_number: int, loads: tuple[int, ...]
) -> None:
    _, stage = both_stages(tmp_path, loads=loads)
    stage = stage if stage_number == 2 else pretrain_stage(SETTINGS, stage.experiment)
    networks = stage.build()
    z = torch.randn(2, 2, *SLAB)
    condition = torch.randn(2, 7, *SLAB)
    arm = torch.zeros(2, dtype=torch.int64)
    load = torch.tensor([1, 2]) if loads else None
    batch = Batch(z, arm, condition, torch.zeros(2, 2))
    predicted = networks(z, torch.zeros(2), batch, load)
    sum(part.square().sum() for part in predicted if part is not None).backward()
    # Without one, DDP would wait for it.
    missing = [n for n, p in networks.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::ray.data.context")  # Ray Data warns of its own defaults
def test_run_resumed_after_a_lost_worker_equals_a_run_in_one_process(
    tmp_path: Path, ray_cluster: None
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    _, stage = both_stages(tmp_path / "alone")
    alone = train(stage)

    _, stage = both_stages(tmp_path / "shared")
    stage = replace(stage, settings=replace(SETTINGS, workers=2, batch_size=4))

    def die() -> float:
        if ray.train.get_context().get_world_rank() == 1:
            os._exit(1)
        return 1.0

    with pytest.raises(TrainingError, match="finetune stopped"):
        train(with_fault(stage, at=5, fault=die))
    assert [checkpoint.step for checkpoint in checkpoints(stage.folder)] == [3]
    together = train(stage)

    assert [line["step"] for line in read_metrics(stage.folder)] == [2, 3, 4, 6]
    expected, actual = alone.tensors("weights"), together.tensors("weights")
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
