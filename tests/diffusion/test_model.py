"""Guided denoiser, the null condition, and samples that a seed names."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lesioncast.config import load_config
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import ControlConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig
from lesioncast.diffusion.spatial.base_map import BaseMap
from lesioncast.diffusion.unet import UNet
from tests.diffusion.test_networks import TINY, randomise
from tests.support.known_denoisers import CONFIGS


def tiny_model(lesion_weight: float = 1.0) -> LesionDiffusion:
    torch.manual_seed(0)
    unet = UNet(TINY)
    randomise(unet)
    control = ControlNet.from_unet(ControlConfig(burden=True), unet)
    randomise(control)
    objective = ObjectiveConfig(
        prediction="log_odds", base_log_odds=0.0, lesion_weight=lesion_weight
    )
    config = ModelConfig(("a", "b"), TINY, ControlConfig(burden=True), objective=objective)
    return LesionDiffusion(unet, control, config)


def case(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(batch, 7, 3, 8, 8, generator=generator)
    return condition, torch.arange(batch) % 2, torch.randn(batch, 2, 3, 8, 8, generator=generator)


@torch.no_grad()
def test_guidance_extrapolates_from_the_null_arm_and_null_image() -> None:
    model, (condition, arm, z) = tiny_model(), case()
    logsnr = torch.zeros(3)
    null = torch.full_like(arm, TINY.null_arm)
    conditional = model.denoiser(condition, arm, guidance=1.0)(z, logsnr)
    unconditional = model.denoiser(torch.zeros_like(condition), null, guidance=1.0)(z, logsnr)
    without = model.denoiser(condition, arm, guidance=0.0)(z, logsnr)
    assert torch.allclose(without, unconditional, atol=1e-5)
    halfway = model.denoiser(condition, arm, guidance=0.5)(z, logsnr)
    assert torch.allclose(halfway, (conditional + unconditional) / 2, atol=1e-5)


@torch.no_grad()
def test_guidance_applies_inside_its_interval_only() -> None:
    model, (condition, arm, z) = tiny_model(), case()
    logsnr = torch.tensor([-5.0, 0.0, 5.0])
    conditional, guided, within = (
        model.denoiser(condition, arm, guidance=guidance, interval=interval)(z, logsnr)
        for guidance, interval in ((1.0, (-20, 20)), (3.0, (-20, 20)), (3.0, (-1, 1)))
    )
    assert torch.equal(within[[0, 2]], conditional[[0, 2]])
    assert torch.equal(within[1], guided[1])
    assert not torch.equal(within[1], conditional[1])


@torch.no_grad()
def test_unconditional_pass_is_skipped_outside_the_interval() -> None:
    model, (condition, arm, z) = tiny_model(), case()
    denoise = model.denoiser(condition, arm, guidance=3.0, interval=(-1, 1))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.unet.register_forward_hook(count)
    denoise(z, torch.full((3,), 5.0))
    assert calls == 1
    denoise(z, torch.tensor([5.0, 5.0, 0.0]))
    assert calls == 3


@torch.no_grad()
def test_bias_of_the_lesion_weight_is_removed_from_net2_only() -> None:
    condition, arm, z = case()
    logsnr = torch.zeros(3)
    plain = tiny_model(1.0).denoiser(condition, arm, guidance=1.0)(z, logsnr)
    weighted = tiny_model(10.0).denoiser(condition, arm, guidance=1.0)(z, logsnr)
    assert torch.equal(plain[:, 0], weighted[:, 0])
    assert (weighted[:, 1] <= plain[:, 1]).all()


def test_equal_seeds_sample_equal_masks_and_other_seeds_other_masks() -> None:
    model, (condition, arm, _) = tiny_model(), case(1)
    sampler = SamplerConfig(solver="dpmsolver++", num_steps=4, spacing="logsnr")
    first, again, other = (
        model.sample_masks(condition, arm, [seed], sampler) for seed in (5, 5, 6)
    )
    assert first.shape == (1, 3, 8, 8)
    assert first.dtype == torch.bool
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("prediction", "evaluations"), [("v", 5), ("log_odds", 1)])
def test_only_a_probability_can_end_a_sample_early(prediction: str, evaluations: int) -> None:
    """Every x_hat is -1 at once: with v it is clamped, with log_odds it is certain."""
    model, (condition, arm, _) = tiny_model(), case(1)
    objective = ObjectiveConfig(prediction=prediction, lesion_weight=1.0)
    model.config = replace(model.config, objective=objective)
    calls = 0

    def certain(_: object, args: tuple[torch.Tensor, ...], __: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.full_like(args[0], 1e3 if prediction == "v" else -1e3)

    model.unet.register_forward_hook(certain)
    mask = model.sample_masks(condition, arm, [5], SamplerConfig(solver="dpmsolver++", num_steps=5))
    assert not mask.any()
    assert calls == evaluations


SIXTEEN = tuple(range(100, 116))
FEW_STEPS = SamplerConfig(solver="sde-dpmsolver++", num_steps=3, spacing="logsnr", guidance=1.5)


def demo_model() -> LesionDiffusion:
    """Return the demo's networks with random weights."""
    config = load_config(CONFIGS / "demo.yaml")
    torch.manual_seed(0)
    unet = UNet(config.model.unet)
    randomise(unet)
    control = ControlNet.from_unet(config.control, unet)
    randomise(control)
    atlas = torch.randn(config.store.slab, generator=torch.Generator().manual_seed(2))
    voxels = torch.tensor(config.model.unet.lesion_load_thresholds)[:, None] + torch.arange(4.0)
    base_map = BaseMap(atlas - atlas.flatten().logsumexp(0), voxels)
    return LesionDiffusion(unet, control, config.model, base_map=base_map)


def sample_rows(rows: list[int], *, device: str = "cpu") -> torch.Tensor:
    """Sample some of sixteen samples, each with its own condition, arm and seed."""
    # At the demo's size. If feature maps are as small as 3 x 3, the rows of a batch start at other
    # memory alignments, and their position in the batch changes the rounding.
    model = demo_model()
    model.unet.to(device), model.control.to(device)
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(16, 7, 15, 64, 56, generator=generator)  # the demo's slab
    return model.sample(
        condition[rows].to(device),
        (torch.tensor(rows) % 6).to(device),
        [SIXTEEN[row] for row in rows],
        FEW_STEPS,
    ).cpu()


def test_seed_names_a_sample_to_the_last_bit_in_any_batch() -> None:
    together = sample_rows(list(range(16)))
    for rows in ([0], [7], [15], [15, 3, 7], [*range(15, 5, -1)]):
        x = sample_rows(rows)
        assert torch.equal(x, together[rows])
        assert torch.equal(x[:, NET2] > 0, together[rows, NET2] > 0)


def test_seed_names_a_sample_to_the_last_bit_after_a_restart(tmp_path: Path) -> None:
    code = (
        "import sys, torch, tests.diffusion.test_model as module;"
        "torch.set_num_threads(int(sys.argv[2]));"
        "torch.save(module.sample_rows([11]), sys.argv[1])"
    )
    threads = str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.pt"), threads],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    restarted, here = torch.load(tmp_path / "x.pt"), sample_rows([4, 11])[1:]
    assert torch.equal(restarted, here)
    assert torch.equal(restarted[:, NET2] > 0, here[:, NET2] > 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its kernels round by batch size")
def test_gpu_samples_differ_between_batches_by_rounding_only() -> None:
    together = sample_rows(list(range(16)), device="cuda")
    alone = torch.cat([sample_rows([row], device="cuda") for row in (0, 7, 15)])
    differing = (alone - together[[0, 7, 15]]).abs() > 1e-3
    flipped = (alone[:, NET2] > 0) != (together[[0, 7, 15], NET2] > 0)
    assert differing.double().mean() < 1e-3
    assert flipped.double().mean() < 1e-4
