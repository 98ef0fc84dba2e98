"""The marginal map: the weighted sum over load classes of x_hat at pure noise."""

import pytest
import torch

from lesioncast.config import load_config
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.guidance import BatchCondition
from lesioncast.diffusion.lesion_load import constrain_to_load
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.schedule import logsnr_at
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.forecasting.marginal_map import marginal_map, spatial_shape
from tests.diffusion.test_base_map import VOXELS, log_density
from tests.diffusion.test_base_map import condition_of as base_map_condition
from tests.diffusion.test_base_map import model as base_map_model
from tests.diffusion.test_model import case, tiny_model
from tests.diffusion.test_networks import randomise
from tests.support.known_denoisers import CONFIGS

SAMPLER = SamplerConfig(solver="dpmsolver++", num_steps=4)
SHAPE = (15, 64, 56)


def demo_model() -> LesionDiffusion:
    """Return the demo's networks, with lesion loads, and random weights."""
    config = load_config(CONFIGS / "demo.yaml", ["priors=load"])  # without a base map
    torch.manual_seed(0)
    unet = UNet(config.model.unet)
    randomise(unet)
    control = ControlNet.from_unet(config.control, unet)
    randomise(control)
    return LesionDiffusion(unet, control, config.model)


def kept_classes(weights: torch.Tensor) -> list[int]:
    """Return the classes that hold 1 % of the probability of any lesion or more."""
    return [k for k, weight in enumerate(weights) if k and weight >= 0.01 * weights.sum()]


def test_the_map_weights_the_classes_by_the_prior() -> None:
    """With networks that know the load alone, the map follows in closed form."""
    model = demo_model()
    condition = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(1))
    patient = model.encode_patient(condition, None, SAMPLER)
    assert spatial_shape(model, patient) == SHAPE
    thresholds = model.config.unet.lesion_load_thresholds
    log_odds = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)) - 5

    def predict(z: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        x_hat = torch.zeros_like(z)
        x_hat[:, NET2] = torch.tanh(log_odds / 2)
        return x_hat

    model.predict = predict  # type: ignore[assignment]
    weights = model.lesion_load_logits(patient, 2).softmax(0)
    weights[0] = 0
    weights *= weights.sum() / weights[kept_classes(weights)].sum()
    expected = torch.zeros(SHAPE)
    for load in kept_classes(weights):
        x_hat = constrain_to_load(torch.tanh(log_odds / 2)[None], torch.tensor([load]), thresholds)
        expected += weights[load] * (x_hat[0] + 1) / 2
    assert torch.allclose(marginal_map(model, patient, 2, SAMPLER), expected, atol=1e-6)


def test_each_class_is_one_row_of_one_pass_and_the_map_repeats() -> None:
    model = demo_model()
    condition = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(1))
    patient = model.encode_patient(condition, None, SAMPLER)
    rows: list[int] = []
    model.unet.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    first = marginal_map(model, patient, 0, SAMPLER)
    weights = model.lesion_load_logits(patient, 0).softmax(0)
    weights[0] = 0
    assert rows == [len(kept_classes(weights))]
    assert torch.equal(first, marginal_map(model, patient, 0, SAMPLER))
    assert ((first >= 0) & (first <= 1)).all()
    assert not torch.equal(first, marginal_map(model, patient, 1, SAMPLER))


def test_the_map_of_a_base_map_model_expects_the_mean_voxels_of_the_load_classes() -> None:
    networks = base_map_model(random=True)
    patient = networks.encode_patient(base_map_condition(1)[0], None, SAMPLER, log_density(9))
    logits = networks.lesion_load_logits(patient, 1)
    assert logits is not None
    expected = float(logits.softmax(0)[1:] @ VOXELS.mean(1))
    assert float(marginal_map(networks, patient, 1, SAMPLER).sum()) == pytest.approx(
        expected, rel=2e-3
    )


def test_without_lesion_loads_the_map_is_one_evaluation_at_pure_noise() -> None:
    model, (condition, _, _) = tiny_model(), case(1)
    patient = model.encode_patient(condition[0], None, SAMPLER)
    probability = marginal_map(model, patient, 1, SAMPLER)
    pure_noise = logsnr_at(torch.ones(1), model.config.schedule)
    denoise = model.denoiser(condition, torch.tensor([1]), guidance=SAMPLER.guidance)
    with torch.no_grad():
        x_hat = denoise(torch.zeros(1, 2, *condition.shape[2:]), pure_noise)
    assert torch.allclose(probability, (x_hat[0, NET2] + 1) / 2)
    assert ((probability >= 0) & (probability <= 1)).all()


@torch.no_grad()
def test_the_encoded_denoiser_is_the_denoiser_of_the_images() -> None:
    model, (condition, arm, z) = tiny_model(), case()
    sampler = SamplerConfig(guidance=1.5)
    logsnr = torch.zeros(3)
    batch = BatchCondition(model.control.encode(condition), arm)
    encoded = model.encoded_denoiser(batch, sampler, spatial_shape=condition.shape[2:])
    images = model.denoiser(condition, arm, guidance=1.5)
    assert torch.allclose(encoded(z, logsnr), images(z, logsnr), atol=1e-6)
