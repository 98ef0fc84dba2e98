"""Lesion load: sampled first, and respected by every mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.guidance import BatchCondition
from lesioncast.diffusion.lesion_load import (
    constrain_to_load,
    ensure_one_lesion,
    lesion_load_class,
    rows_with_lesions,
    sample_load_class,
)
from lesioncast.diffusion.model import LesionDiffusion, expected_outcomes
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.forecasting.sampling import sample_seeds
from lesioncast.training.data.dataset import Batch
from lesioncast.training.modules import FinetuneModule
from tests.diffusion.test_networks import TINY, randomise

THRESHOLDS = (1, 4, 20)
SAMPLER = SamplerConfig(
    solver="sde-dpmsolver++", num_steps=24, spacing="logsnr", logsnr_min=-4, logsnr_max=8
)
SEEDS = range(100, 116)


def mask_of(voxels: int) -> torch.Tensor:
    """Return NET2 in -1 / +1 with the given number of lesion voxels, [3, 4, 4]."""
    return torch.where(torch.arange(48) < voxels, 1.0, -1.0).reshape(3, 4, 4)


def lesion_load_model(control_config: ControlConfig = ControlConfig()) -> LesionDiffusion:  # noqa: B008
    """Return random networks that are conditioned on the lesion load."""
    torch.manual_seed(0)
    config = replace(TINY, lesion_load_thresholds=THRESHOLDS)
    unet = UNet(config)
    randomise(unet)
    control = ControlNet.from_unet(control_config, unet)
    randomise(control)
    objective = ObjectiveConfig(prediction="log_odds", mask_loss="cross_entropy")
    model = ModelConfig(("a", "b"), config, control_config, objective=objective)
    return LesionDiffusion(unet, control, model)


def condition_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, 7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_lesion_load_class_begins_at_its_threshold() -> None:
    masks = torch.stack([mask_of(voxels) for voxels in (0, 1, 3, 4, 19, 20, 48)])
    assert lesion_load_class(masks, THRESHOLDS).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_seeds_sample_classes_at_their_probabilities() -> None:
    chance = np.array([0.5, 0.3, 0.15, 0.05])
    logits = torch.from_numpy(np.log(chance))
    drawn = np.bincount([sample_load_class(logits, seed) for seed in range(20000)], minlength=4)
    sigma = np.sqrt(20000 * chance * (1 - chance))
    assert (np.abs(drawn - 20000 * chance) < 4 * sigma).all()


def test_any_number_of_consecutive_seeds_has_nearly_the_exact_share_of_each_class() -> None:
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    for subject in range(200):
        seeds = sample_seeds(0, f"sub-{subject}", 32)
        empty = np.cumsum([sample_load_class(logits, seed) == 0 for seed in seeds])
        off = np.abs(empty - 0.7 * np.arange(1, 33))
        assert off.max() < 2.5  # independent draws: one in three ends beyond 2.6


def test_seed_has_no_larger_class_under_a_more_effective_arm() -> None:
    worse, better = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]))
    pairs = [
        (sample_load_class(worse, seed), sample_load_class(better, seed)) for seed in range(2000)
    ]
    assert all(under_better <= under_worse for under_worse, under_better in pairs)
    assert 0.05 < np.mean([a > 0 and b == 0 for a, b in pairs]) < 0.15  # 0.1, and no more


def test_rows_with_lesions_or_row_zero() -> None:
    assert rows_with_lesions(torch.tensor([0, 2, 0, 1])).tolist() == [1, 3]
    assert rows_with_lesions(torch.tensor([0, 0])).tolist() == [0]


@pytest.mark.parametrize(
    ("faintness", "expected"),
    [
        (1.0, [0, 3, None, None]),
        (4.0, [0, 1, 1, 1]),
    ],  # the class's maximum, one voxel, or unchanged
)
def test_expected_voxels_are_moved_just_into_the_bounds_of_the_class(
    faintness: float, expected: list[float | None]
) -> None:
    generator = torch.Generator().manual_seed(2)
    x_hat = torch.tanh(torch.randn(3, 4, 4, generator=generator) - faintness)
    constrained = constrain_to_load(x_hat.expand(4, -1, -1, -1), torch.arange(4), THRESHOLDS)
    for row, total in zip(constrained, expected, strict=True):
        if total is None:
            assert torch.equal(row, x_hat)
            continue
        assert ((row + 1) / 2).sum().item() == pytest.approx(total, abs=1e-3)
        assert total == 0 or torch.equal(row.flatten().argsort(), x_hat.flatten().argsort())


def test_masks_have_lesions_if_their_seeds_drew_a_class_with_lesions() -> None:
    model, condition = lesion_load_model(), condition_of(1)
    patient = model.encode_patient(condition[0], None, SAMPLER)
    sampled = [sample.lesion_load for sample in model.sample_conditions(patient, 1, SEEDS)]
    assert len(set(sampled)) > 1
    arm = torch.ones(len(SEEDS), dtype=torch.long)
    x = model.sample(condition.expand(len(SEEDS), -1, -1, -1, -1), arm, SEEDS, SAMPLER)
    classes = lesion_load_class(x[:, 1], THRESHOLDS)
    assert [actual > 0 for actual in classes] == [expected > 0 for expected in sampled]


def test_most_likely_voxel_becomes_a_lesion_if_no_voxel_is_positive() -> None:
    faint = torch.linspace(-1, -0.1, 48).reshape(3, 4, 4)
    assert torch.nonzero(ensure_one_lesion(faint) > 0).tolist() == [[2, 3, 3]]
    some = faint + 0.2
    assert torch.equal(ensure_one_lesion(some), some)


def test_expected_outcomes_are_the_means_over_sampled_classes() -> None:
    model, (condition,) = lesion_load_model(), condition_of(1)
    lesions = torch.tensor([0.0, 1.0, 3.0, 8.0])
    model.control.lesion_load_prior.lesions.copy_(lesions)
    model.control.lesion_load_prior.log_lesions.copy_(lesions.log1p())
    expected = expected_outcomes(
        model.control.lesion_load_prior, model.config.control.masks, condition, None
    )
    patient = model.encode_patient(condition, None, SAMPLER)
    for arm in range(2):
        sampled = lesions[
            [sample.lesion_load for sample in model.sample_conditions(patient, arm, range(2000))]
        ].numpy()
        assert np.mean(sampled > 0) == pytest.approx(float(expected.p_active[arm]), abs=2e-3)
        assert np.mean(sampled) == pytest.approx(float(expected.lesions[arm]), abs=2e-2)
        assert np.log1p(sampled).mean() == pytest.approx(float(expected.log_lesions[arm]), abs=5e-3)
        assert np.log1p(sampled).std() == pytest.approx(float(expected.log_sd[arm]), abs=5e-3)
    assert 0 < expected.p_active.min() < expected.p_active.max() < 1


def test_sample_without_lesions_needs_no_evaluation() -> None:
    model, condition = lesion_load_model(), condition_of(1)
    torch.nn.init.constant_(model.control.lesion_load_prior.steps.bias[:1], -1e3)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.unet.register_forward_hook(count)
    assert not model.sample_masks(condition, torch.tensor([0]), [5], SAMPLER).any()
    assert calls == 0


def test_flair_is_read_once_for_all_samples_and_arms_of_a_patient_and_never_in_training() -> None:
    model = lesion_load_model(ControlConfig(flair_reader_spacing=(3.0, 3.0, 3.0)))
    reader = model.control.lesion_load_prior.reader
    reads = 0

    def count(*_: object) -> None:
        nonlocal reads
        reads += 1

    reader.register_forward_hook(count)
    first, second = condition_of(2)
    condition = torch.stack([first, first, first, second])
    model.sample(condition, torch.tensor([0, 1, 1, 0]), [1, 2, 3, 4], SAMPLER)
    assert reads == 2
    patient = model.encode_patient(first, None, SAMPLER)
    expected_outcomes(model.control.lesion_load_prior, model.control.masks, first, None)
    assert reads == 4
    for arm in (0, 1):
        model.sample_conditions(patient, arm, SEEDS)
    assert reads == 4
    network = FinetuneModule(model.unet, model.control)
    z, logsnr, loads = torch.randn(2, 2, 3, 8, 8), torch.zeros(2), torch.tensor([1, 2])
    network(z, logsnr, Batch(z, torch.tensor([0, 1]), condition[2:]), loads)
    assert reads == 4


def test_prior_says_another_p_active_if_flair_alone_changes() -> None:
    model = lesion_load_model(ControlConfig(flair_reader_spacing=(3.0, 3.0, 3.0)))
    prior, masks = model.control.lesion_load_prior, model.control.masks
    (condition,) = condition_of(1)
    condition[masks] = 0  # the reader gives way to the masks that a patient has
    changed = condition.clone()
    # The order of voxels along a row changes, and neither their mean nor their number.
    changed[3] = condition[3].flip(-1)[:, torch.randperm(8)]
    one, other = (expected_outcomes(prior, masks, each, None) for each in (condition, changed))
    assert not torch.allclose(one.p_active, other.p_active)


@torch.no_grad()
def test_prediction_depends_on_the_lesion_load() -> None:
    model, condition = lesion_load_model(), condition_of(1)
    z, logsnr, arm = torch.randn(1, 2, 3, 8, 8), torch.zeros(1), torch.tensor([0])
    patient = model.control.encode(condition)
    few, many = (
        model.predict(z, logsnr, BatchCondition(patient, arm, torch.tensor([load])))
        for load in (1, 3)
    )
    assert not torch.equal(few, many)


@pytest.mark.parametrize("loads", [(2, 5), (1, 1, 5), (1, 9, 5), (0, 3)])
def test_thresholds_that_do_not_rise_from_one_voxel_are_rejected(loads: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match="lesion_load_thresholds: expected voxels that rise from 1, got"
    ):
        UNetConfig(lesion_load_thresholds=loads)
