"""Costs of the parts of a training step, measured separately: convolutions and everything else."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lesioncast.diffusion.blocks import SelfAttention, slices_to_channels
from lesioncast.diffusion.settings.networks import UNetConfig
from lesioncast.diffusion.solvers import seeded_generators, seeded_noise
from lesioncast.diffusion.unet import UNet
from lesioncast.training.state import TrainState, initial_state, update_ema
from tests.benchmarks.gpu.timing import Call, Timing, measure
from tests.benchmarks.gpu.workloads import (
    STAGE1,
    Scale,
    Variant,
    autocast,
    backend_switches,
    compiled,
    inputs,
    place_on_device,
)

Row = dict[str, Any]
Shape = tuple[int, int, int, int, int]  # channels in and out, kernel, stride, size of the input

LAID_OUT = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TUNED = Variant("", tuned=True, channels_last=True)


def convolution_shapes(scale: Scale) -> Counter[Shape]:
    """Count how often the UNet's forward pass runs each shape of convolution."""
    shapes: Counter[Shape] = Counter()

    def note(module: nn.Conv2d, arguments: tuple[Tensor, ...]) -> None:
        shapes[
            module.in_channels,
            module.out_channels,
            module.kernel_size[0],
            module.stride[0],
            arguments[0].shape[-1],
        ] += 1

    with FakeTensorMode():
        unet = UNet(scale.model.unet)
        for module in unet.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
        data = inputs(scale, batch=1, device=torch.device("cpu"))
        unet(data.x, data.t, data.arm)
    return shapes


def convolutions(scale: Scale, device: torch.device) -> list[Row]:
    """Time every convolution of the UNet in bfloat16, channels_last: a lower bound of a step."""
    rows = []
    with backend_switches(TUNED):
        for shape, times in sorted(convolution_shapes(scale).items()):
            forward, backward = _convolution(shape, scale.batch, device)
            width_in, width_out, kernel, stride, size = shape
            macs = scale.batch * width_in * width_out * (kernel * size // stride) ** 2
            rows.append(
                {
                    "in": width_in,
                    "out": width_out,
                    "kernel": kernel,
                    "stride": stride,
                    "size": size,
                    "times": times,
                    "forward_ms": forward.median,
                    "backward_ms": backward.median,
                    "forward_tflops": 2 * macs / forward.median / 1e9,
                    "backward_tflops": 4 * macs / backward.median / 1e9,
                }
            )
    return rows


def _convolution(shape: Shape, batch: int, device: torch.device) -> tuple[Timing, Timing]:
    width_in, width_out, kernel, stride, size = shape
    layer = nn.Conv2d(width_in, width_out, kernel, stride=stride, padding=kernel // 2)
    layer.to(device=device, dtype=torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(batch, width_in, size, size, device=device).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    out = layer(x)
    gradient = torch.randn_like(out)
    inputs_and_weights = [x, *layer.parameters()]

    def backward() -> None:
        torch.autograd.grad(out, inputs_and_weights, gradient, retain_graph=True)

    return measure(lambda: layer(x), device=device), measure(backward, device=device)


def norms(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Time GroupNorm and SiLU at full resolution, which are limited by memory bandwidth."""
    config = scale.model.unet
    for layout, memory_format in LAID_OUT.items():
        for mode in (None, "default"):
            layer = nn.Sequential(nn.GroupNorm(config.groups, config.widths[0]), nn.SiLU())
            layer.to(device)
            x = _features(scale, device).to(memory_format=memory_format)
            name = f"GroupNorm and SiLU, {layout}, {'compiled' if mode else 'eager'}"
            run = compiled(layer, Variant("", compiled=mode), device)
            yield _timed(name, _both_ways(run, x, TUNED), device, tensor=x)


def _features(scale: Scale, device: torch.device) -> Tensor:
    config, size = scale.model.unet, scale.size
    x = torch.randn(scale.batch, config.widths[0], size, size, device=device)
    return x.bfloat16().requires_grad_()


def _both_ways(function: Callable[[Tensor], Tensor], x: Tensor, variant: Variant) -> Call:
    x = x.detach().requires_grad_()

    def call() -> None:
        with autocast(variant, x.device):
            out = function(x)
        out.backward(torch.ones_like(out))
        x.grad = None

    return call


def _timed(name: str, call: Call, device: torch.device, *, tensor: Tensor | None = None) -> Row:
    """Return a timed row; with `tensor` it also holds its size, to compare with the bandwidth."""
    timing = measure(call, device=device)
    row: Row = {"part": name, "ms": timing.median, "low": timing.low, "high": timing.high}
    return row if tensor is None else row | {"bytes": tensor.nbytes}


def last_layer(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Time the UNet's last layer, forward and backward, in three precisions."""
    for name, tf32, reduced in (
        ("float32", False, False),
        ("TF32", True, False),
        ("bfloat16", True, True),
    ):
        variant = Variant(
            name,
            "bfloat16" if reduced else "float32",
            tf32=tf32,
            tuned=True,
            channels_last=True,
        )
        out = UNet(_shallow(scale.model.unet)).out
        place_on_device(out, variant, device)
        x = _features(scale, device).to(memory_format=torch.channels_last)

        def run(x: Tensor, out: nn.Module = out, *, reduced: bool = reduced) -> Tensor:
            result: Tensor = out(x if reduced else x.float())
            return result

        with backend_switches(variant):
            yield _timed(f"last layer in {name}", _both_ways(run, x, variant), device)


def _shallow(config: UNetConfig) -> UNetConfig:
    return UNetConfig(
        slices=config.slices, widths=config.widths[:1], attention_stages=(), groups=config.groups
    )


def attention(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Time attention at its largest size in each layout, and every backend on its own."""
    config = scale.model.unet
    stage = config.attention_stages[0]
    width, size = config.widths[stage], max(1, scale.size // 2**stage)
    for layout, memory_format in LAID_OUT.items():
        layer = SelfAttention(width, head_dim=config.head_dim, groups=config.groups).to(
            device, memory_format=memory_format
        )
        x = torch.randn(scale.batch, width, size, size, device=device)
        x = x.bfloat16().to(memory_format=memory_format)
        row = _timed(f"attention block, {layout}", _both_ways(layer, x, TUNED), device)
        yield row | {"backend": _attention_backend(layer, x)}
    q, k, v = (
        torch.randn(
            scale.batch, width // config.head_dim, size**2, config.head_dim, device=device
        ).bfloat16()
        for _ in range(3)
    )
    for backend in _backends(device):
        with sdpa_kernel(backend):
            yield _timed(
                f"attention alone, {backend.name}",
                lambda: functional.scaled_dot_product_attention(q, k, v),
                device,
            )


def _backends(device: torch.device) -> list[SDPBackend]:
    if device.type != "cuda":
        return [SDPBackend.MATH]
    return [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
        SDPBackend.CUDNN_ATTENTION,
    ]


def _attention_backend(layer: SelfAttention, x: Tensor) -> str:
    """Return the backend that PyTorch chooses for the strides of q, k and v in this layout."""
    seen: list[str] = []
    original = functional.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(SDPBackend(torch._fused_sdp_choice(q, k, v)).name)
        return original(q, k, v)

    functional.scaled_dot_product_attention = noted
    try:
        with autocast(TUNED, x.device):
            layer(x)
    finally:
        functional.scaled_dot_product_attention = original
    return seen[0]


def bookkeeping(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Time gradient clipping, Adam and the moving average of the weights."""
    with device:
        unet = UNet(scale.model.unet)
    place_on_device(unet, TUNED, device)
    state = initial_state(unet, STAGE1)
    for parameter in unet.parameters():
        parameter.grad = torch.randn_like(parameter)
    yield from [
        _timed("clip", lambda: nn.utils.clip_grad_norm_(unet.parameters(), 1.0), device),
        _timed("Adam", state.optimizer.step, device),
        _timed("average", lambda: _average(state), device),
    ]


def _average(state: TrainState) -> None:
    update_ema(state.ema, state.parameters, 0.9999)


def data_and_noise(scale: Scale, device: torch.device) -> Iterator[Row]:
    """Time the first fold, a batch's copy to the device, and the noise of a sampler's step."""
    data = inputs(scale, batch=scale.batch, device=device)
    host = data.x.cpu()
    shape = tuple(data.x.shape[1:])
    generators = seeded_generators(range(scale.batch))
    yield from [
        _timed(
            "fold",
            lambda: slices_to_channels(data.x, scale.model.unet.patch),
            device,
            tensor=data.x,
        ),
        _timed("a batch's x to the device", lambda: host.to(device), device, tensor=data.x),
        _timed(
            "noise of a sampler's step, drawn on the CPU",
            lambda: seeded_noise(generators, shape).to(device),
            device,
        ),
        _timed("the same drawn on the device", lambda: torch.randn_like(data.x), device),
    ]


PARTS = (norms, last_layer, attention, bookkeeping, data_and_noise)
