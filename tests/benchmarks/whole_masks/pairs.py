"""Measure how far masks of one seed agree between two arms.

    PYTHONPATH=.:platform python tests/benchmarks/whole_masks/pairs.py \
        --bundle out/demo/bundle --store STORE

In the simulation the mask under an arm with fewer lesions is part of that under an arm with more.
Print the share of the smaller mask's voxels that the larger one holds, over validation cases with
lesions in both: for two arms on one seed and, as what chance gives, on two seeds. Images of w000
alone are shown, as where arms are compared. Masks without networks have a stream of random numbers
for each seed, which starts with one number for each voxel.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lesioncast.arrays import Bools, Floats
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean
from lesioncast.evaluation.where.case_scores import masks_of
from lesioncast.evaluation.where.mask_draws import StoredLesions
from lesioncast.imaging.channels import BASELINE
from lesioncast.markdown import format_estimate, markdown_table
from storage import Case, Store
from tests.benchmarks.sampling.solvers import observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser
from tests.benchmarks.whole_masks.draws import (
    NETWORKS,
    STORED,
    VOXELS,
    Patient,
    draw_networks,
    draw_simple,
    patient_of,
)

BOOTSTRAP = Bootstrap(draws=2000, seed=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the masks of both arms and print the table."""
    parser = study_parser(__doc__, cases=40, split="val")
    parser.add_argument("--samples", type=int, default=4, help="a case and arm")
    parser.add_argument("--arms", default="placebo,interferon")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    check_compatible(bundle, store)
    arms = [store.spec.arms.index(name) for name in args.arms.split(",")]
    train = [observed_mask(store, case) for case in cases_with_outcome(store.select(split="train"))]
    stored = StoredLesions.of_masks(train)
    held: dict[str, list[Floats]] = {VOXELS: [], STORED: [], NETWORKS: []}
    for case in cases:
        masks = masks_of_arms(bundle, store, case, arms, stored=stored, samples=args.samples)
        for method, (one, other) in masks.items():
            held[method].append(shares_held(one, other))
    rows = []
    for method, shares in held.items():
        values = np.array(shares)
        weights = BOOTSTRAP.weights(len(values))
        estimates = [estimate_mean(column, weights) for column in values.T]
        counted = int((~np.isnan(values[:, 0])).sum())
        rows.append([method, str(counted), *(format_estimate(one) for one in estimates)])
    print(markdown_table(["masks", "cases", "same seed", "two seeds"], rows))
    return 0


def masks_of_arms(
    bundle: Bundle,
    store: Store,
    case: Case,
    arms: Sequence[int],
    *,
    stored: StoredLesions,
    samples: int,
) -> dict[str, list[Bools]]:
    """Return the masks of each method under each arm, [k, s, h, w] each, on common seeds."""
    patients: list[Patient] = [
        patient_of(
            bundle, store, replace(case, arm=store.spec.arms[arm], arm_index=arm),
            samples=samples, sessions=(BASELINE,),
        )
        for arm in arms
    ]  # fmt: skip
    shape = patients[0].density.shape
    found = {
        NETWORKS: [
            masks_of(drawn, shape)
            for drawn in draw_networks(bundle, patients, bundle.config.sampler)
        ]
    }
    for patient in patients:
        for method, drawn in draw_simple(patient, stored, None).items():
            found.setdefault(method, []).append(masks_of(drawn, shape))
    return found


def shares_held(one: Bools, other: Bools) -> Floats:
    """Return the mean share of the smaller mask that the larger holds, on equal and unequal seeds.

    `one` and `other` [k, s, h, w] are the masks under two arms. Pairs with an empty mask are left
    out; NaN if none is left.
    """
    first, second = (masks.reshape(len(masks), -1).astype(np.float64) for masks in (one, other))
    smaller = np.minimum(first.sum(1)[:, None], second.sum(1))
    share = np.divide(
        first @ second.T, smaller, out=np.full(smaller.shape, np.nan), where=smaller > 0
    )
    same = np.diag(share)
    different = share[~np.eye(len(share), dtype=bool)]
    return np.array(
        [np.nanmean(each) if np.isfinite(each).any() else np.nan for each in (same, different)]
    )


if __name__ == "__main__":
    sys.exit(main())
