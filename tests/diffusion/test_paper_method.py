"""The paper's method, claim by claim (sections 2 and 3), on our networks and our loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lesioncast.diffusion.blocks import SelfAttention
from lesioncast.diffusion.controlnet import ControlNet, PatientEncoding
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import Network, diffusion_loss
from lesioncast.diffusion.schedule import alpha_sigma, logsnr_at
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig, ScheduleConfig
from lesioncast.diffusion.unet import ConditionEmbedding, ControlNetOutput, UNet
from tests.diffusion.test_networks import PAPER_CONTROL, TINY, inputs, randomise

PAPER = ScheduleConfig()
SLICES = TINY.slices


def loss_of(network: Network, x: Tensor, objective: ObjectiveConfig, *, t: Tensor) -> Tensor:
    """Return the training loss with noise from a fixed seed."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    return diffusion_loss(network, x, t=t, noise=noise, schedule=PAPER, objective=objective)


def test_paper_unet_has_thirty_channels_in_and_out() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    first, last = unet.encoder.conv_in, unet.out[-1]
    assert (first.in_channels, last.out_channels) == (30, 30)


def test_every_output_slice_depends_on_every_input_slice_of_flair_and_net2() -> None:
    unet = UNet(replace(TINY, patch=1))
    randomise(unet)
    z, logsnr, arm, _ = inputs()
    z.requires_grad_()
    for channel in range(2):
        for index in range(SLICES):
            unet(z, logsnr, arm)[:, channel, index].square().sum().backward()
            assert z.grad is not None
            assert (z.grad.flatten(3).abs().amax(3) > 0).all()
            z.grad = None


def test_loss_covers_flair_and_net2() -> None:
    guess = torch.zeros(2, 2, SLICES, 4, 4, requires_grad=True)
    x = torch.full_like(guess, 0.5).detach()
    loss_of(lambda z, _: guess + 0 * z, x, ObjectiveConfig(), t=torch.tensor([0.3, 0.7])).backward()
    assert guess.grad is not None
    assert (guess.grad != 0).all()


@torch.no_grad()
def test_arm_adds_its_embedding_to_that_of_the_noise_level() -> None:
    embed = ConditionEmbedding(UNetConfig())
    logsnr = torch.tensor([-3.0, 0.0, 4.0])
    assert embed.arm.num_embeddings == 7
    null = embed(logsnr, torch.full((3,), UNetConfig().null_arm))
    for arm in range(6):
        difference = embed(logsnr, torch.full((3,), arm)) - null
        row = embed.arm.weight[arm] - embed.arm.weight[6]
        torch.testing.assert_close(difference, row.expand(3, -1), atol=1e-5, rtol=0)


def attended_sizes(network: nn.Module) -> list[tuple[int, ...]]:
    """Return a list that receives (h, w) of every feature map with attention as `network` runs."""
    sizes: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:]))
    return sizes


def test_paper_networks_attend_at_16_and_8_voxels_after_every_block() -> None:
    """Run on fake tensors, which have shapes and no values."""
    config = UNetConfig()
    with FakeTensorMode(), torch.no_grad():
        unet, control = UNet(config), ControlNet(PAPER_CONTROL, config)
        z, condition = torch.empty(1, 2, 15, 256, 256), torch.empty(1, 7, 15, 256, 256)
        logsnr, arm = torch.empty(1), torch.empty(1, dtype=torch.int64)
        by_control, by_unet = attended_sizes(control), attended_sizes(unet)
        residuals = control(z, logsnr, arm, control.encode(condition))
        assert unet(z, logsnr, arm, residuals).shape == z.shape
    down, up = [(16, 16)] * 2 + [(8, 8)] * 2, [(8, 8)] * 3 + [(16, 16)] * 3
    assert by_control == down
    assert by_unet == down + up


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_signal_to_noise_ratio_is_the_interpolated_shifted_cosine(t: float) -> None:
    """SNR = cot(angle)^2 (32 / 256)^(2 (1 - t)) (128 / 256)^(2 t) (Hoogeboom et al. 2023).

    The angle runs between those at which the cosine's log SNR is 15 and -15.
    """
    first, last = (math.atan(math.exp(-limit / 2)) for limit in (15, -15))
    angle = first + t * (last - first)
    expected = (1 / math.tan(angle) * (32 / 256) ** (1 - t) * (128 / 256) ** t) ** 2
    logsnr = logsnr_at(torch.tensor([t], dtype=torch.float64), PAPER)
    alpha, sigma = alpha_sigma(logsnr)
    assert ((alpha / sigma) ** 2).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["v", "eps", "x"])
def test_min_snr_weights_equal_those_of_hang_et_al_for_every_prediction(
    kind: str, gamma: float
) -> None:
    """The weight is min(SNR, gamma) for x, divided by SNR for eps, and by SNR + 1 for v."""
    x, guess = torch.rand(5, 2, 1, 4, 4) * 2 - 1, torch.randn(5, 2, 1, 4, 4)
    noise = torch.randn(5, 2, 1, 4, 4)
    t = torch.tensor([0.01, 0.1, 0.3, 0.6, 0.9])
    alpha, sigma = (part[:, None, None, None, None] for part in alpha_sigma(logsnr_at(t, PAPER)))
    snr = (alpha / sigma) ** 2
    capped = snr.clamp(max=gamma)
    assert 0 < (snr > gamma).sum() < 5
    target, weight = {
        "x": (x, capped),
        "eps": (noise, capped / snr),
        "v": (alpha * noise - sigma * x, capped / (snr + 1)),
    }[kind]
    expected = (weight * (guess - target) ** 2).mean()
    loss = diffusion_loss(
        lambda *_: guess,
        x,
        t=t,
        noise=noise,
        schedule=PAPER,
        objective=ObjectiveConfig(prediction=kind, min_snr_gamma=gamma, lesion_weight=1.0),  # type: ignore[arg-type]
    )
    torch.testing.assert_close(loss, expected)


def test_loss_weights_lesion_voxels_of_net2_tenfold() -> None:
    x = torch.full((1, 2, 1, 1, 2), -1.0)
    x[0, 1, 0, 0, 0] = 1.0  # a lesion of NET2 ...
    x[0, 0, 0, 0, 1] = 1.0  # ... beside a bright voxel of FLAIR
    objective = ObjectiveConfig(prediction="x", weighting="x", lesion_weight=10.0)

    def loss_of_error(channel: int, voxel: int) -> float:
        guess = x.clone()
        guess[0, channel, 0, 0, voxel] += 2.0
        return 4 * loss_of(lambda *_: guess, x, objective, t=torch.tensor([0.5])).item() / 2**2

    assert [
        loss_of_error(0, 0),
        loss_of_error(0, 1),
        loss_of_error(1, 1),
        loss_of_error(1, 0),
    ] == [1, 1, 1, 10]


class ArmAlone(nn.Module):
    """Stand-in for the UNet: x_hat is a tenth of the arm's row, plus the ControlNet's residual."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(
        self, z: Tensor, logsnr: Tensor, arm: Tensor, residuals: ControlNetOutput, *_: None
    ) -> Tensor:
        self.passes += 1
        return 0.1 * arm[:, None, None, None, None] + residuals.middle.expand(z.shape)


class ConditionAlone(nn.Module):
    """Stand-in for the ControlNet, whose residual is the mean of the condition."""

    def encode(self, condition: Tensor, covariates: Tensor | None = None) -> PatientEncoding:
        assert covariates is None
        return PatientEncoding(condition.mean((1, 2, 3, 4), keepdim=True), None, None)

    def read_voxels(self, patient: PatientEncoding) -> PatientEncoding:
        return patient

    def forward(
        self, z: Tensor, logsnr: Tensor, arm: Tensor, patient: PatientEncoding, *_: None
    ) -> ControlNetOutput:
        return ControlNetOutput([], patient.features)


def arithmetic(lesion_weight: float = 1.0) -> LesionDiffusion:
    """Return a model whose x_hat is 0.1 * arm + mean(condition). The null arm is row 2."""
    objective = ObjectiveConfig(prediction="x", lesion_weight=lesion_weight)
    config = ModelConfig(("a", "b"), TINY, objective=objective)
    return LesionDiffusion(ArmAlone(), ConditionAlone(), config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (0.0, 0.2),  # the null arm's 0.2, the null image's 0
        (1.0, 0.4),  # arm b's 0.1, the image's 0.3
        (1.5, 0.5),  # 0.2 + 1.5 * (0.4 - 0.2)
        (3.0, 0.8),
        (9.0, 1.0),  # clamped
    ],
)
def test_guidance_interpolates_and_extrapolates_both_conditions(
    guidance: float, expected: float
) -> None:
    model, condition = arithmetic(), torch.full((1, 7, 3, 4, 4), 0.3)
    denoise = model.denoiser(condition, torch.tensor([1]), guidance=guidance)
    x_hat = denoise(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1))
    torch.testing.assert_close(x_hat, torch.full((1, 2, 3, 4, 4), expected))


def test_unconditional_network_does_not_run_without_guidance() -> None:
    model, condition = arithmetic(), torch.full((1, 7, 3, 4, 4), 0.3)
    for guidance, passes in ((1.0, 1), (2.0, 3)):
        denoise = model.denoiser(condition, torch.tensor([1]), guidance=guidance)
        denoise(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1))
        assert model.unet.passes == passes


def test_flair_is_sampled_too_but_masks_are_net2() -> None:
    """Without the bias of the lesion weight, x_hat 0.4 becomes -0.62, a probability of 0.19."""
    model, condition = arithmetic(lesion_weight=10.0), torch.full((1, 7, 3, 4, 4), 0.3)
    arm, z = torch.tensor([1]), torch.zeros(1, 2, 3, 4, 4)
    x_hat = model.denoiser(condition, arm, guidance=1.0)(z, torch.zeros(1))
    assert (x_hat[:, 0] > 0).all()
    assert (x_hat[:, 1] < 0).all()
    assert not model.sample_masks(condition, arm, [0], SamplerConfig(num_steps=1)).any()


def test_encoder_copy_in_the_controlnet_shares_no_weight_with_the_unet() -> None:
    unet = UNet(TINY)
    control = ControlNet.from_unet(ControlConfig(), unet)
    shared = {id(p) for p in control.parameters()} & {id(p) for p in unet.parameters()}
    assert not shared
    assert all(p.requires_grad for p in control.parameters())
