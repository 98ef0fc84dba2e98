"""Train a small 3-D convolutional denoiser of new lesions by itself, beside a bundle's networks.

    PYTHONPATH=.:platform python tests/benchmarks/training/local_denoiser.py \
        --bundle out/demo/bundle --store out/demo/store.zarr

It sees the evidence in z_t, the bundle's base map of each patient and the noise level, and nothing
else. It learns from crops of active training cases, mirrored along each axis. The loss of a case is
divided by the square root of its lesion voxels, and gradients are clipped to 1, so that no large
case and no early step rules the moments of Adam. Print the cross entropy of a case at each noise
level, on active validation cases in the lesion load observed: of the base map alone, of the
denoiser and of the bundle's networks, with the standard error of the difference over cases.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.arrays import Mask, evenly_spaced
from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.guidance import BatchCondition
from lesioncast.diffusion.lesion_load import lesion_load_class
from lesioncast.diffusion.objective import NET2, add_noise, log_likelihood_ratio
from lesioncast.diffusion.settings.networks import NUM_TARGETS
from lesioncast.diffusion.spatial.base_map import base_log_odds
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.runtime import check_compatible, store_reader
from lesioncast.forecasting.sampling import ModelInput
from storage import Case, Store
from tests.benchmarks.sampling.solvers import observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser

LOWEST, HIGHEST = -4.5, 8.0  # logsnr in training, drawn evenly
LEVELS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0)
DILATIONS = (1, 1, 2)
EMBEDDING, FREQUENCIES = 32, 4
CROP, CROPS = 32, 8  # rows and columns of a crop; crops of a step
LEARNING_RATE, WARMUP, EMA = 3e-3, 50, 0.99
CERTAIN = 1 - 1e-6  # x_hat of the bundle is clamped to this before log odds


class LocalDenoiser(nn.Module):
    """Log odds of a lesion at each voxel from the voxels around, by a few convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(2 * FREQUENCIES + 2, EMBEDDING),
            nn.SiLU(),
            nn.Linear(EMBEDDING, EMBEDDING),
            nn.SiLU(),
        )
        self.layers = nn.ModuleList(
            nn.Conv3d(width if layer else 2, width, 3, padding=dilation, dilation=dilation)
            for layer, dilation in enumerate(DILATIONS)
        )
        self.modulations = nn.ModuleList(nn.Linear(EMBEDDING, 2 * width) for _ in DILATIONS)
        self.out = nn.Conv3d(width, 1, 3, padding=1)
        for part in (*self.modulations, self.out):
            nn.init.zeros_(part.weight)  # type: ignore[arg-type]
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor, logsnr: Tensor, base: Tensor, voxels: Tensor) -> Tensor:
        """Return log odds [b, s, h, w] of z and base log odds of that shape.

        `logsnr` [b] and `voxels` [b], the number of lesion voxels of the whole case.
        """
        evidence = log_likelihood_ratio(z, logsnr)
        phases = logsnr[:, None] / 16 * math.pi * 2 ** torch.arange(FREQUENCIES)
        level = [phases.sin(), phases.cos(), logsnr[:, None] / 5, voxels.log()[:, None] / 4]
        embedding = self.embed(torch.cat(level, dim=1))
        features = torch.stack([(evidence / 2).clamp(-5, 5) / 2, (base / 4).clamp(-4, 4)], dim=1)
        features = features.contiguous(memory_format=torch.channels_last_3d)
        for index, (layer, modulation) in enumerate(
            zip(self.layers, self.modulations, strict=True)
        ):
            scale, shift = modulation(embedding)[:, :, None, None, None].chunk(2, dim=1)
            hidden = functional.silu(layer(features) * (1 + scale) + shift)
            features = features + hidden if index else hidden
        return base + self.out(features)[:, 0] + evidence


@dataclass(frozen=True)
class Example:
    """An active case: its new lesions and the log density of its spatial prior, [s, h, w]."""

    case: Case
    mask: Mask
    log_density: Tensor

    @property
    def x(self) -> Tensor:
        """Return the mask in -1 / +1, [1, s, h, w]."""
        return 2 * torch.from_numpy(self.mask).float()[None] - 1

    @property
    def voxels(self) -> Tensor:
        """Return the number of lesion voxels, [1]."""
        return torch.tensor([float(self.mask.sum())])

    @property
    def base(self) -> Tensor:
        """Return the base log odds, [1, s, h, w]."""
        return base_log_odds(self.log_density[None], self.voxels)


def main(argv: Sequence[str] | None = None) -> int:
    """Train the denoiser and print the table."""
    parser = study_parser(__doc__, cases=1000, split="val")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=8, help="channels of the denoiser")
    parser.add_argument("--train-cases", type=int, default=2000, help="active or not")
    parser.add_argument("--scored", type=int, default=40, help="active cases, evenly over all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    check_compatible(bundle, store)
    train = cases_with_outcome(store.select(split="train"))
    examples = list(active_examples(bundle, store, evenly_spaced(train, args.train_cases)))
    torch.manual_seed(args.seed)
    denoiser = train_denoiser(LocalDenoiser(args.width), examples, args)
    scored = evenly_spaced(list(active_examples(bundle, store, cases)), args.scored)
    print(f"{len(examples)} training cases, {args.steps} steps of {CROPS} crops, seed {args.seed}")
    print(f"{sum(weight.numel() for weight in denoiser.parameters())} weights\n")
    print("\n".join(table(score(bundle, store, denoiser, scored))))
    return 0


def active_examples(bundle: Bundle, store: Store, cases: Sequence[Case]) -> Iterator[Example]:
    """Yield the active cases; the atlas of each leaves out its own lesions."""
    assert bundle.base is not None
    read = store_reader(store, bundle.config.model)
    for case in cases:
        mask = observed_mask(store, case).astype(bool)
        if mask.any():
            arrays = read(ModelInput(case.index))
            base = bundle.base.without(mask)
            density = base.log_density(arrays.condition.astype(np.float32), arrays.parcellation)
            yield Example(case, mask, torch.from_numpy(np.asarray(density, np.float32)))


def train_denoiser(
    denoiser: LocalDenoiser, examples: Sequence[Example], args: argparse.Namespace
) -> LocalDenoiser:
    """Train the denoiser, and return it with the moving average of its weights."""
    rng = np.random.default_rng(args.seed)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    average = torch.optim.swa_utils.AveragedModel(
        denoiser, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA)
    )
    for step in range(args.steps):
        decay = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * decay
        x, base, voxels = random_crops(rng, examples)
        places = torch.from_numpy((rng.random(CROPS) + np.arange(CROPS)) / CROPS).float()
        logsnr = LOWEST + (HIGHEST - LOWEST) * places
        z = add_noise(x, torch.randn_like(x), logsnr)
        loss = (cross_entropy(denoiser(z, logsnr, base, voxels), x) / voxels.sqrt()).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(denoiser)
        if step % 100 == 0:
            print(f"step {step}  loss {loss.item():.3f}", file=sys.stderr, flush=True)
    trained = average.module
    assert isinstance(trained, LocalDenoiser)
    return trained


def random_crops(
    rng: np.random.Generator, examples: Sequence[Example]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and base log odds of mirrored crops, [CROPS, s, CROP, CROP], and voxels [CROPS]."""
    chosen = [examples[row] for row in rng.integers(len(examples), size=CROPS)]
    volumes = torch.stack([torch.cat([one.x, one.base]) for one in chosen], dim=1)
    rows, columns = (max(size - CROP, 0) for size in volumes.shape[-2:])
    top, left = rng.integers(rows + 1), rng.integers(columns + 1)
    volumes = volumes[..., top : top + CROP, left : left + CROP]
    volumes = volumes.flip([axis for axis in (2, 3, 4) if rng.random() < 0.5])
    x, base = volumes.unbind(0)
    return x, base, torch.cat([one.voxels for one in chosen])


def cross_entropy(log_odds: Tensor, x: Tensor) -> Tensor:
    """Return the cross entropy of each row of x [b, s, h, w] in -1 / +1, in nats, [b]."""
    return functional.softplus(-x * log_odds).flatten(1).sum(1)


@torch.no_grad()
def score(
    bundle: Bundle, store: Store, denoiser: LocalDenoiser, examples: Sequence[Example]
) -> dict[float, Tensor]:
    """Return the cross entropy over the root of the lesion voxels by level, [case, method].

    The methods are the base map with the voxel's own evidence, the denoiser, and the networks.
    """
    encode, read = PatientEncoder(bundle, device="cpu"), store_reader(store, bundle.config.model)
    thresholds = bundle.config.model.unet.lesion_load_thresholds
    generator = torch.Generator().manual_seed(0)
    rows: dict[float, list[Tensor]] = {level: [] for level in LEVELS}
    for one in examples:
        (patient,) = encode(read(ModelInput(one.case.index)))
        condition = BatchCondition(
            patient,
            torch.tensor([one.case.arm_index]),
            lesion_load_class(one.x, thresholds),
            one.voxels,
        )
        assert patient.log_density is not None
        base = base_log_odds(patient.log_density, one.voxels)
        for level in LEVELS:
            logsnr = torch.tensor([level])
            noise = torch.randn(1, NUM_TARGETS, *one.x.shape[1:], generator=generator)
            # The networks see a FLAIR of zeros: stage 2 does not train it.
            z = add_noise(torch.stack([torch.zeros_like(one.x), one.x], dim=1), noise, logsnr)
            x_hat = bundle.model.predict(z, logsnr, condition)[:, NET2].clamp(-CERTAIN, CERTAIN)
            net2 = z[:, NET2]
            odds = (
                base + log_likelihood_ratio(net2, logsnr),
                denoiser(net2, logsnr, base, one.voxels),
                2 * torch.atanh(x_hat),
            )
            entropy = torch.cat([cross_entropy(each, one.x) for each in odds])
            rows[level].append(entropy / one.voxels.sqrt())
    return {level: torch.stack(values) for level, values in rows.items()}


def table(scores: dict[float, Tensor]) -> Iterator[str]:
    """Yield the rows of the table."""
    yield "| logsnr | base map | local denoiser | networks | local - networks |"
    yield "|" + "---|" * 5
    for level, values in scores.items():
        base, local, networks = values.mean(0).tolist()
        difference = values[:, 1] - values[:, 2]
        error = float(difference.std()) / math.sqrt(len(difference))
        yield (
            f"| {level:g} | {base:.2f} | {local:.2f} | {networks:.2f} "
            f"| {float(difference.mean()):.2f} ± {error:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
