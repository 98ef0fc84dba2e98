"""Compare a training step of the UNet on one CPU thread with one of diffusers' UNet.

    PYTHONPATH=.:platform python tests/benchmarks/training/training_step.py [--rounds 9]

Both networks have the same layers at the sizes of two presets, without what diffusers lacks: the
voxel head and the lesion load. Both take slices of voxels and move them into channels. A step is a
forward pass, the loss, the gradients, clipping and Adam.

Each round takes one step of both, the first of them by turns. A figure is the median over rounds of
the processor time, which other work on the machine disturbs less than elapsed time. Ratios are
taken within a round.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from lesioncast.cluster.connection import MALLOC_ENV
from lesioncast.config import load_config
from lesioncast.diffusion.blocks import channels_to_slices, slices_to_channels
from lesioncast.diffusion.unet import UNet, UNetConfig
from tests.benchmarks.data.tables import table

CONFIGS = Path("jobs/configs")
BATCHES = {"demo": 4, "small": 1}  # active cases of a batch of the demo on one of its two workers
LEARNING_RATE, GRADIENT_CLIP = 1e-4, 1.0
HEAD = ("preset", "case", "ours, ms", "range", "diffusers, ms", "range", "diffusers / ours")

Step = Callable[[], object]


@dataclass(frozen=True)
class Network:
    """A network with the milliseconds of processor time of each round's step."""

    step: Step
    milliseconds: list[float] = field(default_factory=list)

    def time(self) -> None:
        """Take a step and note its time."""
        began = time.process_time()
        self.step()
        self.milliseconds.append((time.process_time() - began) * 1e3)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--presets", nargs="+", choices=tuple(BATCHES), default=list(BATCHES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row(preset, rounds=args.rounds) for preset in args.presets]
    load = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end"
    print(f"torch {torch.__version__}, {args.rounds} rounds, {load}, {time.strftime('%Y-%m-%d')}.")
    print()
    print(table(HEAD, rows))
    return 0


def row(preset: str, *, rounds: int) -> list[str]:
    """Return the cells of one preset."""
    config = load_config(CONFIGS / f"{preset}.yaml")
    unet = replace(config.model.unet, voxel_head_width=0, lesion_load_thresholds=(), base_map=False)
    batch, slab = BATCHES[preset], config.store.slab
    ours, theirs = compare(unet, (batch, 2, *slab), rounds=rounds)
    ratios = [b / a for a, b in zip(ours.milliseconds, theirs.milliseconds, strict=True)]
    return [
        preset,
        f"{batch} x {' x '.join(map(str, slab))}",
        *(
            cell
            for network in (ours, theirs)
            for cell in (f"{statistics.median(network.milliseconds):.0f}", spread(network))
        ),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ]


def spread(network: Network) -> str:
    """Return the least and the largest time."""
    return f"{min(network.milliseconds):.0f} to {max(network.milliseconds):.0f}"


def compare(config: UNetConfig, shape: tuple[int, ...], *, rounds: int) -> tuple[Network, Network]:
    """Return the times of our network and of diffusers' on random cases [b, 2, s, h, w]."""
    generator = torch.Generator().manual_seed(0)
    z, target = (torch.randn(shape, generator=generator) for _ in range(2))
    logsnr, arm = torch.linspace(-4, 4, shape[0]), torch.arange(shape[0]) % config.arms
    unet, other = UNet(config), of_diffusers(config)
    ours = Network(training_step(unet, lambda: unet(z, logsnr, arm), target))

    def predict() -> Tensor:
        sample = other(slices_to_channels(z, config.patch), logsnr, class_labels=arm).sample
        return channels_to_slices(sample, slices=config.slices, patch=config.patch)

    theirs = Network(training_step(other, predict, target))
    for turn in range(rounds + 1):
        for network in (ours, theirs) if turn % 2 else (theirs, ours):
            network.time()
    for network in (ours, theirs):  # the first round allocates memory
        del network.milliseconds[0]
    return ours, theirs


def of_diffusers(config: UNetConfig) -> UNet2DModel:
    """Return the same layers from diffusers."""
    attention = [stage in config.attention_stages for stage in range(len(config.widths))]
    unet = UNet2DModel(
        in_channels=config.folded_channels,
        out_channels=config.folded_channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        block_out_channels=config.widths,
        layers_per_block=config.down_blocks,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.groups,
        add_attention=False,
        num_class_embeds=config.arms + 1,
    )
    del unet.mid_block.resnets[1]  # we have one block in the middle
    return unet


def training_step(network: nn.Module, predict: Callable[[], Tensor], target: Tensor) -> Step:
    """Return a call that takes one step of Adam on one batch."""
    for parameter in network.parameters():
        if not parameter.any():  # a layer of zeros would leave the rest without gradients
            nn.init.normal_(parameter, std=0.01)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        (predict() - target).square().mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    if not MALLOC_ENV.items() <= os.environ.items():  # glibc reads them as a process starts
        os.execve(sys.executable, sys.orig_argv, os.environ | MALLOC_ENV)
    sys.exit(main())
