"""Measured workloads: passes and steps of the networks, and the operations each needs.

Requires torch and the two parts of lesioncast that need nothing else: `diffusion`, and the
optimiser's state in `training`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import Network, diffusion_loss
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import NUM_TARGETS, ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.training.settings import TrainSettings
from lesioncast.training.state import initial_state
from tests.benchmarks.gpu.timing import Call

SAMPLER = SamplerConfig(solver="sde-dpmsolver++", eta=0.2, guidance=2.0)


@dataclass(frozen=True)
class Scale:
    """Networks, the slab [slices, size, size] they process, and the batch size."""

    model: ModelConfig
    size: int
    batch: int


PAPER = Scale(
    ModelConfig(PAPER_ARM_NAMES, control=ControlConfig(hint_widths=(32, 96, 96, 256))), 256, 16
)
# The six stages of the paper with attention in the same two, one block each.
REDUCED = Scale(
    ModelConfig(
        PAPER_ARM_NAMES,
        unet=UNetConfig(
            slices=3, widths=(8, 16, 16, 16, 32, 32), down_blocks=1, head_dim=8, groups=8
        ),
        control=ControlConfig(hint_widths=(8,)),
    ),
    32,
    2,
)
STAGE1 = TrainSettings(steps=100_000, precision="bfloat16")
STAGE2 = TrainSettings(steps=40_000, learning_rate=5e-5, ema=0.999, precision="bfloat16")


@dataclass(frozen=True)
class Variant:
    """One way to run the same mathematics.

    `tuned` lets cuDNN try its algorithms (`cudnn.benchmark`), `compiled` is a mode of
    torch.compile. In bfloat16 the last convolution stays in float32 as in unet.py, where cuDNN
    takes TF32 unless `tf32` forbids it: True is PyTorch's default.
    """

    name: str
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    tf32: bool = True
    tuned: bool = False
    channels_last: bool = False
    compiled: str | None = None


SHIPPED = Variant("bfloat16, as the jobs run it")
BEST = Variant("+ torch.compile", tuned=True, channels_last=True, compiled="default")
GRAPHS = Variant("+ CUDA graphs", tuned=True, channels_last=True, compiled="reduce-overhead")
# Each adds one thing to the one before it, up to GRAPHS; the rest are asides.
LADDER = (
    Variant("float32", "float32", tf32=False),
    Variant("TF32", "float32"),
    SHIPPED,
    Variant("+ cudnn.benchmark", tuned=True),
    Variant("+ channels_last", tuned=True, channels_last=True),
    BEST,
    GRAPHS,
    Variant("torch.compile without channels_last", tuned=True, compiled="default"),
    Variant(
        "torch.compile, last convolution in true float32",
        tf32=False,
        tuned=True,
        channels_last=True,
        compiled="default",
    ),
)
AUTOTUNED = Variant(
    "torch.compile, max-autotune",
    tuned=True,
    channels_last=True,
    compiled="max-autotune-no-cudagraphs",
)


@contextmanager
def backend_switches(variant: Variant) -> Iterator[None]:
    """Set PyTorch's global switches for the variant, and restore them afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    reduced = variant.tf32 and variant.precision == "float32"
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = variant.tuned, variant.tf32, reduced
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def autocast(variant: Variant, device: torch.device) -> AbstractContextManager[object]:
    """Use bfloat16 in matrix products and convolutions if the variant says so."""
    enabled = variant.precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@dataclass(frozen=True)
class Inputs:
    """Random cases: x, noise [b, 2, s, h, w], t, arm [b], condition [b, 7, s, h, w]."""

    x: Tensor
    noise: Tensor
    t: Tensor
    arm: Tensor
    condition: Tensor


def inputs(scale: Scale, *, batch: int, device: torch.device) -> Inputs:
    """Return random cases. Zeros would not do: products of zeros run faster than those of data."""
    unet, size = scale.model.unet, scale.size
    target = (batch, NUM_TARGETS, unet.slices, size, size)
    return Inputs(
        x=torch.randn(target, device=device).sign(),
        noise=torch.randn(target, device=device),
        t=torch.linspace(0.05, 0.95, batch, device=device),
        arm=torch.arange(batch, device=device) % unet.arms,
        condition=torch.randn(
            (batch, scale.model.control.channels, *target[2:]), device=device
        ).sign(),
    )


def place_on_device(module: nn.Module, variant: Variant, device: torch.device) -> None:
    """Move a network to `device` in the variant's memory format; fill zero layers with noise."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    module.to(
        device=device,
        memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format,
    )


def compiled(function: Callable[..., Tensor], variant: Variant, device: torch.device) -> Network:
    """Compile `function` if the variant says so. Without a GPU torch.compile only traces."""
    if variant.compiled is None:
        return function
    if device.type != "cuda":
        return torch.compile(function, backend="eager")
    return torch.compile(function, mode=variant.compiled)


def forward(scale: Scale, variant: Variant, device: torch.device) -> Call:
    """Return a forward pass of the UNet without gradients."""
    with device:
        unet = UNet(scale.model.unet).eval()
    place_on_device(unet, variant, device)
    network, data = compiled(unet, variant, device), inputs(scale, batch=scale.batch, device=device)

    def call() -> None:
        with torch.no_grad(), autocast(variant, device):
            network(data.x, data.t, data.arm)

    return call


def loss(network: Network, data: Inputs, model: ModelConfig) -> Tensor:
    """Return the loss of equation 3 on these cases."""
    return diffusion_loss(
        network,
        data.x,
        t=data.t,
        noise=data.noise,
        schedule=model.schedule,
        objective=model.objective,
    )


def stage1(scale: Scale, variant: Variant, device: torch.device) -> Call:
    """Return a step of stage 1 as in training/loop.py: passes, clipping, Adam and the average."""
    with device:
        unet = UNet(scale.model.unet)
    place_on_device(unet, variant, device)
    network = compiled(unet, variant, device)
    data = inputs(scale, batch=scale.batch, device=device)

    def predict(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
        return network(z_t, logsnr_t, data.arm)

    return _step(scale, variant, unet, predict, data, STAGE1)


def stage2(scale: Scale, variant: Variant, device: torch.device) -> Call:
    """Return a step of stage 2: the ControlNet learns, the UNet is frozen."""
    with device:
        unet = UNet(scale.model.unet).eval().requires_grad_(False)
        control = ControlNet.from_unet(scale.model.control, unet)
    for module in (unet, control):
        place_on_device(module, variant, device)
    network = compiled(_controlled(unet, control), variant, device)
    data = inputs(scale, batch=scale.batch, device=device)

    def predict(z_t: Tensor, logsnr_t: Tensor) -> Tensor:
        return network(z_t, logsnr_t, data.arm, data.condition)

    return _step(scale, variant, control, predict, data, STAGE2)


def _controlled(unet: UNet, control: ControlNet) -> Callable[..., Tensor]:
    def network(z: Tensor, logsnr: Tensor, arm: Tensor, condition: Tensor) -> Tensor:
        residuals = control(z, logsnr, arm, control.encode(condition))
        prediction: Tensor = unet(z, logsnr, arm, residuals)
        return prediction

    return network


def _step(
    scale: Scale,
    variant: Variant,
    trained: nn.Module,
    predict: Network,
    data: Inputs,
    settings: TrainSettings,
) -> Call:
    state = initial_state(trained, settings)

    def call() -> None:
        if variant.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(variant, data.x.device):
            value = loss(predict, data, scale.model)
        value.backward()
        nn.utils.clip_grad_norm_(state.parameters.values(), settings.gradient_clip)
        state.update(settings)

    return call


def _model(scale: Scale, variant: Variant, device: torch.device) -> LesionDiffusion:
    with device:
        unet, control = UNet(scale.model.unet), ControlNet(scale.model.control, scale.model.unet)
    for module in (unet, control):
        place_on_device(module, variant, device)
        if variant.compiled and device.type == "cuda":
            module.compile(mode=variant.compiled)
        elif variant.compiled:
            module.compile(backend="eager")
    return LesionDiffusion(unet, control, scale.model)


def evaluation(scale: Scale, variant: Variant, device: torch.device) -> Call:
    """Return one guided evaluation: both networks, with and without the condition."""
    data = inputs(scale, batch=scale.batch, device=device)
    with torch.no_grad(), autocast(variant, device):
        denoise = _model(scale, variant, device).denoiser(
            data.condition, data.arm, guidance=SAMPLER.guidance
        )

    def call() -> None:
        if variant.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), autocast(variant, device):
            denoise(data.noise, data.t)

    return call


def sampling(scale: Scale, variant: Variant, device: torch.device, *, steps: int) -> Call:
    """Return a call that draws guided samples in `steps` evaluations with seeded noise."""
    data, model = inputs(scale, batch=scale.batch, device=device), _model(scale, variant, device)
    sampler = replace(SAMPLER, num_steps=steps, precision=variant.precision)

    def call() -> None:
        model.sample(data.condition, data.arm, range(scale.batch), sampler)

    return call


def operations(scale: Scale) -> dict[str, float]:
    """Count floating-point operations per case on tensors without data (2 per multiply-add).

    `unet`, `hint` and `control` (after the hint) are forward passes; `stage1` and `stage2` are
    steps without the optimiser; `evaluation` is guided, so it runs both networks twice.
    """
    with FakeTensorMode():
        data = inputs(scale, batch=1, device=torch.device("cpu"))
        unet = UNet(scale.model.unet)
        control = ControlNet(scale.model.control, scale.model.unet)
        hint = control.encode(data.condition)
        counted = {
            "unet": _counted(lambda: unet(data.x, data.t, data.arm)),
            "hint": _counted(lambda: control.encode(data.condition)),
            "control": _counted(lambda: control(data.x, data.t, data.arm, hint)),
            "stage1": _counted(
                lambda: loss(lambda z, t: unet(z, t, data.arm), data, scale.model).backward()
            ),
        }
        unet.requires_grad_(False)
        network = _controlled(unet, control)
        counted["stage2"] = _counted(
            lambda: loss(
                lambda z, t: network(z, t, data.arm, data.condition), data, scale.model
            ).backward()
        )
    return counted | {"evaluation": 2 * (counted["unet"] + counted["control"])}


def _counted(call: Call) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
