"""Compare sampled masks with the lesion load that their seeds drew, and with observed cases.

    PYTHONPATH=.:platform python tests/benchmarks/sampling/lesion_load_fidelity.py \
        --bundle out/demo/bundle --store STORE

The cases are sampled under the arm that they received. The last line shows the probabilities before
sampling.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score

from lesioncast.bundle.bundle import Bundle
from lesioncast.cluster.connection import RaySettings, ray_cluster
from lesioncast.diffusion.lesion_load import lesion_load_class
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput, seeds_of
from lesioncast.jobs.command.runner import configure_logging
from storage import Case, Store
from tests.benchmarks.sampling.solvers import Masks, draw, lesion_count, observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser

HEAD = "| load | mm3 at least | samples | empty | mm3 | lesions | observed cases | mm3 | lesions |"
Loads = npt.NDArray[np.int64]


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the cases and print one row per lesion load."""
    parser = study_parser(__doc__, cases=300, split="val")
    parser.add_argument("--samples", type=int, default=2, help="a case")
    args = parser.parse_args(argv)
    configure_logging()
    store, bundle, cases = load_study(args)
    least = bundle.config.model.unet.lesion_load_thresholds
    if not least:
        parser.error(f"{args.bundle}: expected networks with lesion_load_mm3, got none")
    truth = np.stack([observed_mask(store, case) for case in cases])
    with ray_cluster(RaySettings()):
        drawn = draw(
            store, cases, args.bundle.absolute(), bundle.config.sampler, samples=args.samples
        )
    masks = drawn.reshape(-1, *truth.shape[1:])
    sampled_load, chance = sampled_lesion_loads(store, cases, bundle, samples=args.samples)
    true = lesion_load_class(torch.from_numpy(2.0 * truth - 1), least).numpy()
    print(HEAD, "|" + "---|" * 9, sep="\n")
    voxel_mm3 = math.prod(store.spec.spacing)
    for load, voxels in enumerate((0, *least)):
        of_load, seen = masks[sampled_load == load], truth[true == load]
        empty = np.mean([not mask.any() for mask in of_load]) if len(of_load) else np.nan
        print(
            f"| {load} | {voxel_mm3 * voxels:g} | {len(of_load)} | {empty:.2f} "
            f"| {means(of_load, store)} "
            f"| {len(seen)} | {means(seen, store)} |",
            flush=True,
        )
    auc = roc_auc_score(true > 0, chance)
    print(f"P(load > 0): {chance.mean():.3f}, observed {np.mean(true > 0):.3f}, AUC {auc:.3f}")
    return 0


def sampled_lesion_loads(
    store: Store, cases: Sequence[Case], bundle: Bundle, *, samples: int
) -> tuple[Loads, npt.NDArray[np.float64]]:
    """Return the lesion load of every sample by case, and each case's probability of any lesion."""
    seeds = seeds_of(cases, seed=0, samples=samples)
    read = store_reader(store, bundle.config.model)
    loads, chance = [], []
    for case in cases:
        inputs = map(torch.from_numpy, read(ModelInput(case.index))[:2])
        hint = bundle.model.encode_patient(*inputs, bundle.config.sampler)
        drawn = bundle.model.sample_conditions(hint, case.arm_index, seeds[case.index])
        loads += [each.lesion_load for each in drawn]
        logits = bundle.model.lesion_load_logits(hint, case.arm_index)
        assert logits is not None
        chance.append(1 - logits.softmax(0)[0].item())
    return np.array(loads), np.array(chance)


def means(masks: Masks, store: Store) -> str:
    """Return the mean volume in mm3 and number of lesions of some masks."""
    if not len(masks):
        return " | "
    lesions = np.mean([lesion_count(mask, store) for mask in masks])
    volume = math.prod(store.spec.spacing) * masks.sum() / len(masks)
    return f"{volume:.0f} | {lesions:.2f}"


if __name__ == "__main__":
    sys.exit(main())
