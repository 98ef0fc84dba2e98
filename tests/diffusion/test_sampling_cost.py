"""What a sample costs, in counts: network evaluations, and work that no step repeats."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lesioncast.config import load_config
from lesioncast.diffusion import guidance
from lesioncast.diffusion.continuous_batching import ContinuousBatcher, SampleRequest
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.model import SampleCondition, is_decided
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.networks import ControlConfig
from lesioncast.diffusion.voxel_mlp import VoxelMLP
from tests.diffusion.test_base_map import (
    SAMPLER,
    SHAPE,
    UNET,
    condition_of,
    log_density,
    model,
)
from tests.diffusion.test_model import randomise
from tests.support.known_denoisers import CONFIGS, lesion_denoiser, sample

SLAB = (15, 64, 56)
MOST_EVALUATIONS = 17  # of the demo's 28 steps


def run(batcher: ContinuousBatcher[SampleCondition], conditions: list[SampleCondition]) -> int:
    """Draw one sample per condition; return the number of forward passes."""
    batcher.add(SampleRequest(0, row, each, row) for row, each in enumerate(conditions))
    passes = 0
    while batcher.busy:
        batcher.step()
        passes += batcher.rows > 0
    return passes


def test_steps_share_the_base_log_odds_and_what_voxels_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    networks, sampler = model(random=True), replace(SAMPLER, undecided_voxels=0.0)
    networks.control = ControlNet(ControlConfig(voxel_mlp_width=4), UNET)
    calls = {"base": 0, "read": 0}
    base_log_odds, read_features = guidance.base_log_odds, VoxelMLP.read_features

    def counted_base(density: Tensor, voxels: Tensor) -> Tensor:
        calls["base"] += 1
        return base_log_odds(density, voxels)

    def counted_read(mlp: VoxelMLP, features: Tensor) -> Tensor:
        calls["read"] += 1
        return read_features(mlp, features)

    monkeypatch.setattr(guidance, "base_log_odds", counted_base)
    monkeypatch.setattr(VoxelMLP, "read_features", counted_read)
    patient = networks.encode_patient(condition_of(1)[0], None, sampler, log_density(2))
    batcher = networks.batcher(sampler, spatial_shape=SHAPE, device=torch.device("cpu"), slots=4)
    passes = run(batcher, [SampleCondition(patient, 0, 2, 9.0)] * 4)
    assert passes == sampler.num_steps > 1
    assert calls["base"] == 1
    assert calls["read"] == 1


@torch.no_grad()
def test_what_voxels_read_gives_the_same_output() -> None:
    torch.manual_seed(0)
    mlp = VoxelMLP(6, 5, embedding=4)
    randomise(mlp)
    features, embedding = torch.randn(2, 6, *SHAPE), torch.randn(2, 4)
    reading = mlp.read_features(features)
    assert torch.allclose(mlp(features, embedding), mlp.from_reading(reading, embedding), atol=1e-6)


@torch.no_grad()
def test_an_encoding_for_sampling_predicts_what_the_encoding_of_training_does() -> None:
    torch.manual_seed(0)
    control = ControlNet(ControlConfig(voxel_mlp_width=4), UNET)
    randomise(control)
    encoded = control.encode(condition_of(2))
    z, logsnr = torch.randn(2, 2, *SHAPE), torch.zeros(2)
    arm, load = torch.tensor([0, 1]), torch.tensor([1, 2])
    trained, sampled = (
        control(z, logsnr, arm, patient, load).net2
        for patient in (encoded, control.read_voxels(encoded))
    )
    assert trained is not None
    assert sampled is not None
    assert torch.allclose(trained, sampled, atol=1e-5)


def test_a_sample_of_the_demo_ends_after_few_evaluations_with_nearly_its_final_mask() -> None:
    """Voxels of the demo's slab are lesions independently, with the exact denoiser."""
    config = load_config(CONFIGS / "demo.yaml")
    denoise, evaluations = lesion_denoiser(1e-3, 1), 0

    def counted(z: Tensor, logsnr: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(z)
        return denoise(z, logsnr)

    def draw(limit: float) -> Tensor:
        return sample(
            counted,
            shape=(2, *SLAB),
            seeds=range(8),
            schedule=config.schedule,
            sampler=config.sampler,
            is_decided=lambda x_hat: is_decided(x_hat, undecided_voxels=limit),
        )[:, NET2]

    final = draw(0.0) > 0
    assert evaluations == 8 * config.sampler.num_steps
    evaluations = 0
    changed = ((draw(config.sampler.undecided_voxels) > 0) != final).flatten(1).sum(1)
    assert changed.double().mean() <= 2 * config.sampler.undecided_voxels
    assert evaluations <= 8 * MOST_EVALUATIONS


def test_a_sample_ends_once_few_voxels_are_expected_to_change() -> None:
    x_hat = torch.full((3, 2, 1, 2, 5), -1.0)
    x_hat[:, NET2, 0, 0, 0] = 1 - 2 * torch.tensor([0.0, 0.03, 0.06])  # P(other class)
    x_hat[:, NET2, 0, 1, 1] = -1 + 2 * torch.tensor([0.0, 0.01, 0.06])
    assert is_decided(x_hat, undecided_voxels=0.05).tolist() == [True, True, False]
    assert is_decided(x_hat, undecided_voxels=0.0).tolist() == [False, False, False]
