"""Compare volume, number and size of sampled lesions with observed cases of each lesion load.

    PYTHONPATH=.:platform python tests/benchmarks/studies/sampled_amounts.py \
        --bundle out/demo/bundle --store STORE

Each active validation case is sampled under the arm that it received, in the lesion load class that
was observed. So the prior has no part in what is compared. Print, for each class, the means over
observed cases and over samples with 95 % intervals over cases, and the ratio of the two.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lesioncast.arrays import Bools, Floats
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.diffusion.continuous_batching import run_until_idle
from lesioncast.diffusion.lesion_load import lesion_load_class
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.objective import NET2
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput, independent_seeds
from lesioncast.imaging.lesions import components
from storage import Case, Store
from tests.benchmarks.sampling.solvers import observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser

QUANTITIES = ("mm3", "lesions", "mm3 a lesion")
TOLERANCE = 0.10
LEAST_CASES = 5  # of a class, for an interval over its cases
HEAD = "| load | cases | quantity | observed | sampled | ratio | within 10 % or the interval |"


@dataclass(frozen=True)
class Amounts:
    """Volume in mm3, number of lesions and mean lesion volume of n cases, [n, quantity]."""

    values: Floats

    def interval(self, quantity: int) -> tuple[float, float, float]:
        """Return the mean of a quantity and its 95 % interval over cases."""
        values = self.values[:, quantity]
        half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
        return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the cases and print three rows for each lesion load."""
    parser = study_parser(__doc__, cases=1000, split="val")
    parser.add_argument("--samples", type=int, default=2, help="a case")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    check_compatible(bundle, store)
    least = bundle.config.model.unet.lesion_load_thresholds
    if not least:
        parser.error(f"{args.bundle}: expected networks with lesion loads, got none")
    truth = np.stack([observed_mask(store, case) for case in cases]).astype(bool)
    loads = lesion_load_class(torch.from_numpy(2.0 * truth - 1), least).numpy()
    print(HEAD, "|" + "---|" * 7, sep="\n")
    voxel = math.prod(store.spec.spacing)
    for load in range(1, len(least) + 1):
        rows = np.flatnonzero(loads == load)
        if len(rows) < LEAST_CASES:
            print(f"| {load} | {len(rows)} | too few cases | | | | |", flush=True)
            continue
        masks = [
            sample_in_class(bundle, store, cases[row], load, samples=args.samples) for row in rows
        ]
        observed = Amounts(np.array([amounts(truth[row], voxel) for row in rows]))
        sampled = Amounts(
            np.array([np.mean([amounts(mask, voxel) for mask in each], axis=0) for each in masks])
        )
        print_rows(load, observed, sampled)
    return 0


def sample_in_class(bundle: Bundle, store: Store, case: Case, load: int, *, samples: int) -> Bools:
    """Sample masks of a case in a lesion load class, [k, s, h, w]."""
    model = bundle.model
    (patient,) = PatientEncoder(bundle, device="cpu")(
        store_reader(store, bundle.config.model)(ModelInput(case.index))
    )
    seeds = independent_seeds(0, case.subject, samples)
    logits = torch.full((bundle.config.model.unet.lesion_load_classes,), -math.inf)
    logits[load] = 0.0  # the class is given, so that the seed's quantile lies within it
    conditions = [
        SampleCondition(
            patient,
            case.arm_index,
            load,
            None if model.base_map is None else model.base_map.sample_voxels(logits, seed, load),
        )
        for seed in seeds
    ]
    batcher = model.batcher(
        bundle.config.sampler, spatial_shape=store.spec.slab, device=torch.device("cpu")
    )
    x = run_until_idle(batcher, conditions, seeds)
    return (x[:, NET2] > 0).numpy()


def amounts(mask: Bools, voxel_mm3: float) -> tuple[float, float, float]:
    """Return volume in mm3, number of lesions, and mean volume of a lesion of one mask."""
    volume, number = float(mask.sum()) * voxel_mm3, components(mask)[1]
    return volume, float(number), volume / max(number, 1)


def print_rows(load: int, observed: Amounts, sampled: Amounts) -> None:
    """Print the three quantities of a class."""
    for index, name in enumerate(QUANTITIES):
        (true, low, high), (mean, least, most) = (
            each.interval(index) for each in (observed, sampled)
        )
        agrees = abs(mean / true - 1) <= TOLERANCE or low <= mean <= high
        print(
            f"| {load} | {len(observed.values)} | {name} | {true:.1f} ({low:.1f} to {high:.1f}) "
            f"| {mean:.1f} ({least:.1f} to {most:.1f}) | {mean / true:.2f} "
            f"| {'yes' if agrees else 'no'} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
