"""The lesion load: decided first, by one number, and kept to by every mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesioncast.diffusion.controlnet import ControlConfig, ControlNet
from lesioncast.diffusion.lesion_load import (
    constrain_to_load,
    ensure_one_lesion,
    lesion_load_class,
    rows_with_lesions,
    sample_load_class,
)
from lesioncast.diffusion.model import LesionDiffusion, ModelConfig
from lesioncast.diffusion.objective import ObjectiveConfig
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.diffusion.unet import UNet, UNetConfig
from lesioncast.forecasting.sampling import sample_seeds
from tests.diffusion.test_networks import TINY, randomise

LEAST = (1, 4, 20)
SAMPLER = SamplerConfig(
    solver="sde-dpmsolver++", num_steps=24, spacing="logsnr", logsnr_min=-4, logsnr_max=8
)
SEEDS = range(100, 116)


def mask_of(voxels: int) -> torch.Tensor:
    """NET2 in -1 / +1 with so many lesion voxels, [3, 4, 4]."""
    return torch.where(torch.arange(48) < voxels, 1.0, -1.0).reshape(3, 4, 4)


def loaded_model() -> LesionDiffusion:
    """Random networks that are told the load."""
    torch.manual_seed(0)
    config = replace(TINY, lesion_load_thresholds=LEAST)
    unet = UNet(config)
    randomise(unet)
    control = ControlNet.from_unet(ControlConfig(), unet)
    randomise(control)
    objective = ObjectiveConfig(prediction="log_odds", mask_loss="cross_entropy")
    return LesionDiffusion(unet, control, ModelConfig(("a", "b"), config, objective=objective))


def condition_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, 7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_load_begins_at_its_least_number_of_voxels() -> None:
    masks = torch.stack([mask_of(voxels) for voxels in (0, 1, 3, 4, 19, 20, 48)])
    assert lesion_load_class(masks, LEAST).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_seeds_draw_loads_at_their_probabilities() -> None:
    chance = np.array([0.5, 0.3, 0.15, 0.05])
    logits = torch.from_numpy(np.log(chance))
    drawn = np.bincount([sample_load_class(logits, seed) for seed in range(20000)], minlength=4)
    sigma = np.sqrt(20000 * chance * (1 - chance))
    assert (np.abs(drawn - 20000 * chance) < 4 * sigma).all()


def test_consecutive_seeds_of_a_subject_draw_their_share_of_loads_whatever_their_number() -> None:
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    for subject in range(200):
        seeds = sample_seeds(0, f"sub-{subject}", 32)
        empty = np.cumsum([sample_load_class(logits, seed) == 0 for seed in seeds])
        off = np.abs(empty - 0.7 * np.arange(1, 33))
        assert off.max() < 2.5  # drawn by lot, every third would be off by 2.6 at the end


def test_a_seed_has_no_more_lesions_under_an_arm_that_makes_every_load_less_likely() -> None:
    worse, better = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]))
    pairs = [
        (sample_load_class(worse, seed), sample_load_class(better, seed)) for seed in range(2000)
    ]
    assert all(under_better <= under_worse for under_worse, under_better in pairs)
    assert 0.05 < np.mean([a > 0 and b == 0 for a, b in pairs]) < 0.15  # 0.1, and no more


def test_cases_with_lesions_are_told_and_one_where_there_is_none() -> None:
    assert rows_with_lesions(torch.tensor([0, 2, 0, 1])).tolist() == [1, 3]
    assert rows_with_lesions(torch.tensor([0, 0])).tolist() == [0]


@pytest.mark.parametrize(
    ("faintness", "expected"),
    [(1.0, [0, 3, None, None]), (4.0, [0, 1, 1, 1])],  # at most the load's, at least one, or as is
)
def test_the_expected_voxels_are_moved_into_the_bounds_of_the_load_and_no_further(
    faintness: float, expected: list[float | None]
) -> None:
    generator = torch.Generator().manual_seed(2)
    x_hat = torch.tanh(torch.randn(3, 4, 4, generator=generator) - faintness)
    kept = constrain_to_load(x_hat.expand(4, -1, -1, -1), torch.arange(4), LEAST)
    for found, total in zip(kept, expected, strict=True):
        if total is None:
            assert torch.equal(found, x_hat)
            continue
        assert ((found + 1) / 2).sum().item() == pytest.approx(total, abs=1e-3)
        assert total == 0 or torch.equal(found.flatten().argsort(), x_hat.flatten().argsort())


def test_masks_have_the_load_that_their_seeds_drew() -> None:
    model, condition = loaded_model(), condition_of(1)
    hint = model.encode_patient(condition[0], None, SAMPLER)
    told = [each.load for each in model.sample_conditions(hint, 1, SEEDS)]
    assert len(set(told)) > 1
    arm = torch.ones(len(SEEDS), dtype=torch.long)
    x = model.sample(condition.expand(len(SEEDS), -1, -1, -1, -1), arm, SEEDS, SAMPLER)
    drawn = lesion_load_class(x[:, 1], LEAST)
    assert [got > 0 for got in drawn] == [load > 0 for load in told]


def test_a_sample_with_lesions_has_its_likeliest_voxel_where_none_is_likelier_than_not() -> None:
    faint = torch.linspace(-1, -0.1, 48).reshape(3, 4, 4)
    assert torch.nonzero(ensure_one_lesion(faint) > 0).tolist() == [[2, 3, 3]]
    some = faint + 0.2
    assert torch.equal(ensure_one_lesion(some), some)


def test_what_is_stated_is_the_mean_over_the_loads_that_seeds_draw() -> None:
    model, (condition,) = loaded_model(), condition_of(1)
    lesions = torch.tensor([0.0, 1.0, 3.0, 8.0])
    model.control.load_prior.lesions.copy_(lesions)
    model.control.load_prior.log_lesions.copy_(lesions.log1p())
    stated = model.expected_outcomes(condition, None)
    assert stated is not None
    hint = model.encode_patient(condition, None, SAMPLER)
    for arm in range(2):
        drawn = lesions[
            [told.load for told in model.sample_conditions(hint, arm, range(2000))]
        ].numpy()
        assert np.mean(drawn > 0) == pytest.approx(float(stated.p_active[arm]), abs=2e-3)
        assert np.mean(drawn) == pytest.approx(float(stated.lesions[arm]), abs=2e-2)
        assert np.log1p(drawn).mean() == pytest.approx(float(stated.log_lesions[arm]), abs=5e-3)
    assert 0 < stated.p_active.min() < stated.p_active.max() < 1


def test_a_sample_without_lesions_costs_no_evaluation() -> None:
    model, condition = loaded_model(), condition_of(1)
    torch.nn.init.constant_(model.control.load_prior.layers[-1].bias[:1], 1e3)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.unet.register_forward_hook(count)
    assert not model.sample_masks(condition, torch.tensor([0]), [5], SAMPLER).any()
    assert calls == 0


@torch.no_grad()
def test_the_networks_predict_otherwise_for_another_load() -> None:
    model, condition = loaded_model(), condition_of(1)
    z, logsnr, arm = torch.randn(1, 2, 3, 8, 8), torch.zeros(1), torch.tensor([0])
    hint = model.control.encode(condition)
    few, many = (model.predict(z, logsnr, arm, hint, torch.tensor([load])) for load in (1, 3))
    assert not torch.equal(few, many)


@pytest.mark.parametrize("loads", [(2, 5), (1, 1, 5), (1, 9, 5), (0, 3)])
def test_loads_that_do_not_rise_from_one_voxel_are_refused(loads: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match="lesion_load_thresholds: expected voxels that rise from 1, got"
    ):
        UNetConfig(lesion_load_thresholds=loads)
