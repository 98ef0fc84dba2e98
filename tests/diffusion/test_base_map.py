"""Base map: networks start from a patient's log density, scaled by the lesion load."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.guidance import BatchCondition
from lesioncast.diffusion.lesion_load import lesion_load_class, sample_load_class
from lesioncast.diffusion.model import LesionDiffusion, net2_offset
from lesioncast.diffusion.objective import NET2, diffusion_loss, log_likelihood_ratio
from lesioncast.diffusion.schedule import logsnr_at
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import ControlConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig, ScheduleConfig
from lesioncast.diffusion.spatial.base_map import (
    LEAST_DENSITY,
    BaseMap,
    base_log_odds,
    hold_voxels,
    shift_to_total,
    voxel_quantiles,
)
from lesioncast.diffusion.unet import UNet
from tests.diffusion.test_networks import TINY, inputs, randomise

SHAPE = (3, 8, 8)
THRESHOLDS = (1, 4, 20)
UNET = replace(TINY, lesion_load_thresholds=THRESHOLDS, base_map=True, voxel_head_width=4)
OBJECTIVE = ObjectiveConfig(
    prediction="log_odds", mask_loss="cross_entropy", weighting="x", lesion_weight=1.0
)
SAMPLER = SamplerConfig(
    solver="sde-dpmsolver++", num_steps=24, spacing="logsnr", logsnr_min=-4, logsnr_max=8
)
VOXELS = voxel_quantiles([1, 2, 3, 5, 9, 12, 24, 30, 40], THRESHOLDS, quantiles=6)


def log_density(seed: int) -> Tensor:
    """Return the log of a random density over a volume, [s, h, w]."""
    scores = 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return scores - scores.flatten().logsumexp(0)


BASE = BaseMap(log_density(0), VOXELS)


def model(*, random: bool) -> LesionDiffusion:
    """Return networks on a base map, with random weights or as they are before training."""
    torch.manual_seed(0)
    unet = UNet(UNET)
    if random:
        randomise(unet)
    control = ControlNet.from_unet(ControlConfig(), unet)
    if random:
        randomise(control)
    config = ModelConfig(("a", "b"), UNET, objective=OBJECTIVE)
    return LesionDiffusion(unet, control, config, base_map=BASE)


def condition_of(rows: int) -> Tensor:
    return torch.randn(rows, 7, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_base_log_odds_expect_the_given_number_of_lesion_voxels() -> None:
    density = log_density(1).expand(3, *SHAPE)
    density = (density / 4).log_softmax(-1) - math.log(24)  # no rate near 1, which is cut
    voxels = torch.tensor([1.0, 7.0, 31.0])
    expected = torch.sigmoid(base_log_odds(density, voxels)).flatten(1).sum(1)
    assert torch.allclose(expected, voxels, rtol=1e-3)


def test_base_log_odds_leave_no_voxel_impossible() -> None:
    density = torch.full(SHAPE, -30.0)
    density[0] = -math.log(64)
    base = base_log_odds(density[None], torch.tensor([2.0]))
    outside = torch.sigmoid(base[0, 1:]).sum() / torch.sigmoid(base).sum()
    assert 0 < outside < math.exp(-LEAST_DENSITY) < 0.005


@torch.no_grad()
def test_an_offset_of_zero_changes_no_bit_and_models_without_a_base_map_have_none() -> None:
    config = replace(UNET, base_map=False, voxel_head_width=0)
    torch.manual_seed(0)
    unet = UNet(config)
    randomise(unet)
    z, logsnr, arm, _ = inputs()
    load = torch.tensor([1, 2])
    expected = unet(z, logsnr, arm, None, load)
    assert torch.equal(unet(z, logsnr, arm, None, load, torch.zeros(2, *SHAPE)), expected)
    assert net2_offset(None, torch.ones(2), OBJECTIVE) is None


@torch.no_grad()
def test_untrained_networks_give_the_base_map_at_pure_noise() -> None:
    untrained = model(random=False)
    own = log_density(2)
    patient = untrained.encode_patient(condition_of(1)[0], None, SAMPLER, own)
    load = torch.tensor([2])
    logsnr = logsnr_at(torch.ones(1), untrained.config.schedule)
    z, condition = torch.zeros(1, 2, *SHAPE), BatchCondition(patient, load, load)
    x_hat = untrained.predict(z, logsnr, condition)
    base = torch.sigmoid(base_log_odds(own[None], BASE.mean_voxels(load)))
    assert torch.allclose((x_hat[:, NET2] + 1) / 2, base, atol=1e-6)
    few = untrained.predict(z, logsnr, replace(condition, voxels=torch.tensor([1.0])))
    rate = torch.sigmoid(base_log_odds(own[None], torch.tensor([1.0])))
    assert torch.allclose((few[:, NET2] + 1) / 2, rate, atol=1e-6)


@pytest.mark.parametrize("weighting", ["cross_entropy", "squared"])
def test_the_loss_of_stage_one_is_least_at_the_true_base(weighting: str) -> None:
    """Masks are drawn from a map; networks that add nothing must have that map as their base."""
    objective = replace(OBJECTIVE, mask_loss=weighting)
    truth = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) - 2
    generator = torch.Generator().manual_seed(4)
    masks = torch.rand(512, *SHAPE, generator=generator) < torch.sigmoid(truth)
    x = torch.zeros(512, 2, *SHAPE)
    x[:, NET2] = 2.0 * masks - 1
    noise = torch.randn(512, 2, *SHAPE, generator=generator)

    def loss_of(base: Tensor) -> float:
        def network(z: Tensor, _: Tensor) -> Tensor:
            offset = base.expand(len(z), *SHAPE) - objective.base_log_odds
            return torch.stack([torch.zeros_like(offset), offset], dim=1)

        return float(
            diffusion_loss(
                network,
                x,
                t=torch.full((512,), 0.7),
                noise=noise,
                schedule=ScheduleConfig(),
                objective=objective,
            )
        )

    others = (truth + 0.5, truth - 0.5, truth.mean().expand(SHAPE), truth.flip(2))
    assert all(loss_of(truth) < loss_of(other) for other in others)


@torch.no_grad()
def test_the_voxel_head_reads_the_base_map() -> None:
    networks = model(random=True)
    z, logsnr, arm, _ = inputs()
    load = torch.tensor([1, 2])
    assert networks.unet.head is not None
    embedding = networks.unet.encoder.embedding(logsnr, arm, load)
    net2, offset = torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)
    low, high = (
        networks.unet.head(net2, z[:, NET2], logsnr, embedding, value)
        for value in (offset, -offset)
    )
    assert not torch.allclose(low, high)


@torch.no_grad()
def test_autoguidance_multiplies_the_distance_from_the_base_map() -> None:
    networks, load = model(random=True), torch.tensor([1, 2])
    z, logsnr = inputs()[0], torch.full((2,), -3.0)
    density = log_density(2).expand(2, *SHAPE)
    patient = replace(networks.control.encode(condition_of(2)), log_density=density)
    condition = BatchCondition(patient, torch.tensor([0, 1]), load, torch.tensor([2.0, 9.0]))
    evidence = log_likelihood_ratio(z[:, NET2], logsnr)

    def log_odds(*factors: float) -> Tensor:
        x_hat = networks.predict(z, logsnr, condition, autoguidance=factors)
        return 2 * torch.atanh(x_hat[:, NET2].double()) - evidence

    trained, guided = log_odds(), log_odds(1.0, 1.5, 1.0)
    base = base_log_odds(density, torch.tensor([2.0, 9.0]))
    assert torch.equal(guided[0], trained[0])
    expected = base[1] + 1.5 * (trained[1] - base[1])
    # x_hat is rounded near -1 and 1.
    sure = ((trained[1] + evidence[1]).abs() < 8) & ((expected + evidence[1]).abs() < 8)
    assert sure.sum() > 20
    assert torch.allclose(guided[1][sure], expected[sure], atol=1e-2)
    assert torch.equal(log_odds(1.5)[1], guided[1])


@torch.no_grad()
def test_a_map_keeps_a_share_of_the_networks_distance_from_the_base_map() -> None:
    networks, load = model(random=True), torch.tensor([2])
    patient = networks.encode_patient(condition_of(1)[0], None, SAMPLER, log_density(2))
    batch = BatchCondition(patient, torch.tensor([0]), load)
    z, logsnr = torch.zeros(1, 2, *SHAPE), logsnr_at(torch.ones(1), networks.config.schedule)

    def log_odds(weight: float) -> Tensor:
        sampler = replace(SAMPLER, map_weight=weight, autoguidance=(3.0,))
        denoise = networks.encoded_denoiser(batch, sampler, spatial_shape=SHAPE)
        return 2 * torch.atanh(denoise(z, logsnr)[0, NET2].double().clamp(-0.9999, 0.9999))

    base, half, trained = map(log_odds, (0.0, 0.5, 1.0))
    # The load class shifts all log odds of a map by one amount, which differences between voxels
    # do not have.
    base, half, trained = (odds - odds[0, 0, 0] for odds in (base, half, trained))
    sure = (base.abs() < 5) & (trained.abs() < 5) & (half.abs() < 5)
    assert sure.sum() > 20
    assert torch.allclose(half[sure], ((base + trained) / 2)[sure], atol=5e-3)
    assert not torch.allclose(base[sure], trained[sure], atol=5e-2)


def test_factors_of_autoguidance_are_one_for_each_class_or_one() -> None:
    networks = model(random=False)
    for factors in ((1.5,), (1.5, 1.2, 1.0)):
        networks.batcher(
            replace(SAMPLER, autoguidance=factors), spatial_shape=SHAPE, device=torch.device("cpu")
        )
    with pytest.raises(ValueError, match=r"expected one factor, or 3, .*, got \[1.5, 1.2\]"):
        networks.batcher(
            replace(SAMPLER, autoguidance=(1.5, 1.2)),
            spatial_shape=SHAPE,
            device=torch.device("cpu"),
        )
    with pytest.raises(ValueError, match="autoguidance: expected factors of 1 or more"):
        replace(SAMPLER, autoguidance=(0.9,))


@torch.no_grad()
def test_the_unconditional_prediction_has_the_atlas() -> None:
    networks, load = model(random=True), torch.tensor([2])
    z, logsnr = torch.randn(1, 2, *SHAPE), torch.zeros(1)

    def denoised(density: Tensor | None, guidance: float) -> Tensor:
        sampler = replace(SAMPLER, guidance=guidance)
        patient = networks.encode_patient(condition_of(1)[0], None, sampler, density)
        batch = BatchCondition(patient, torch.tensor([0]), load)
        return networks.encoded_denoiser(batch, sampler, spatial_shape=SHAPE)(z, logsnr)

    assert torch.equal(denoised(log_density(5), 0.0), denoised(log_density(6), 0.0))
    assert not torch.equal(denoised(log_density(5), 1.0), denoised(log_density(6), 1.0))
    assert torch.equal(denoised(None, 1.0), denoised(BASE.atlas, 1.0))


@pytest.mark.parametrize("total", [0.5, 3.0, 60.0, 180.0])
def test_held_predictions_expect_the_given_voxels_in_the_same_order(total: float) -> None:
    x_hat = torch.tanh(torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(7)) - 2)
    held = hold_voxels(x_hat, torch.tensor([total, 10.0]))
    assert ((held + 1) / 2).flatten(1).sum(1).tolist() == pytest.approx([total, 10.0], rel=1e-3)
    order = x_hat[0].flatten().argsort()
    assert (held[0].flatten()[order].diff() >= 0).all()
    assert torch.equal(hold_voxels(x_hat[1:], torch.tensor([10.0]))[0], held[1])


def test_shift_is_found_far_from_the_start() -> None:
    odds = torch.full((1000,), -16.0)
    odds[:5] = 16
    assert torch.sigmoid(odds + shift_to_total(odds, 40.0)).sum() == pytest.approx(40, rel=1e-3)
    assert torch.sigmoid(odds + shift_to_total(odds, 1.0)).sum() == pytest.approx(1, rel=1e-3)


def test_quantiles_lie_in_their_class_and_have_its_mean() -> None:
    for row, least in zip(VOXELS, THRESHOLDS, strict=True):
        assert (lesion_load_class(_masks(row), THRESHOLDS) == THRESHOLDS.index(least) + 1).all()
    assert VOXELS.mean(1).tolist() == pytest.approx([2, 26 / 3, 94 / 3])
    empty = voxel_quantiles([1], THRESHOLDS, quantiles=4)
    assert empty[2].tolist() == [20.0] * 4


def _masks(voxels: Tensor) -> Tensor:
    """Return masks [n, s, h, w] with the given numbers of lesion voxels."""
    places = torch.arange(math.prod(SHAPE)).reshape(SHAPE)
    return torch.stack([torch.where(places < number, 1.0, -1.0) for number in voxels])


def test_seeds_draw_a_class_and_voxels_within_it_at_their_shares() -> None:
    logits = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    drawn = [
        (load, BASE.sample_voxels(logits, seed, load))
        for seed in range(3000)
        if (load := sample_load_class(logits, seed))
    ]
    for load in (1, 2, 3):
        of_class = [voxels for own, voxels in drawn if own == load]
        assert np.mean(of_class) == pytest.approx(float(VOXELS[load - 1].mean()), rel=0.02)
        assert set(of_class) == set(VOXELS[load - 1].tolist())


def test_samples_hold_about_the_voxels_that_their_seeds_drew() -> None:
    """Without a network's sense of shape, voxels are independent given their number."""
    untrained = model(random=False)
    prior = untrained.control.lesion_load_prior
    assert prior is not None
    torch.nn.init.constant_(prior.steps.bias[:1], 1e3)
    patient = untrained.encode_patient(condition_of(1)[0], None, SAMPLER, log_density(8))
    conditions = untrained.sample_conditions(patient, 0, range(48))
    wanted = [condition.voxels for condition in conditions]
    x = untrained.sample(
        condition_of(1).expand(48, -1, -1, -1, -1), torch.zeros(48).long(), range(48), SAMPLER
    )
    found = (x[:, NET2] > 0).flatten(1).sum(1).tolist()
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.1)
    assert np.corrcoef(found, wanted)[0, 1] > 0.95


def test_a_base_map_without_its_networks_is_refused_and_so_is_another_prediction() -> None:
    unet = UNet(UNET)
    config = ModelConfig(("a", "b"), UNET, objective=OBJECTIVE)
    control = ControlNet.from_unet(ControlConfig(), unet)
    with pytest.raises(ValueError, match="base_map: expected one if unet.base_map is set"):
        LesionDiffusion(unet, control, config)
    with pytest.raises(ValueError, match="expected log_odds for networks that refine a base map"):
        ModelConfig(("a", "b"), UNET, objective=ObjectiveConfig(prediction="v"))
    with pytest.raises(ValueError, match="base_map: expected lesion_load_thresholds"):
        replace(UNET, lesion_load_thresholds=())
