"""Quality against network evaluations: a bundle's networks under one solver after the other.

    PYTHONPATH=.:platform python tests/benchmarks/solvers.py --bundle out/demo/bundle --store STORE

The cases are those of the store's validation split, so that choosing a solver leaves the test split
blind, or of any split of a trial that the bundle does not know. Prints a table; `--starts`,
`--ends`, `--steps` and `--etas` say what is tried of the stochastic DPM-Solver++ 2M: the logsnr
between which its steps are even, how many they are, and their noise, 0 for the ODE.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from chosen import chosen, study_parser
from sklearn.metrics import roc_auc_score

from lesioncast.diffusion.sampler import SamplerConfig
from lesioncast.evaluation.fanout import map_on_actors, with_progress
from lesioncast.evaluation.lesions import measure
from lesioncast.evaluation.metrics import crps, log_count_errors
from lesioncast.forecasting.draws import Drawn, Request, plan, seeds_of
from lesioncast.forecasting.engine import build_sampler
from lesioncast.slab import MASKS, SESSIONS
from lesioncast.start import RaySettings, cluster, configure_logging
from storage import Case, Store

HEAD = (
    "| from | to | steps | eta | s a sample | P(active) | count | voxels a lesion | AUC "
    "| count CRPS | log-count MSE | diversity |"
)
Masks = npt.NDArray[np.bool_]


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the same cases with every solver."""
    parser = study_parser(__doc__, cases=160, split="val")
    parser.add_argument("--samples", type=int, default=4, help="a case")
    parser.add_argument("--starts", default="-4", help="logsnr of the second evaluation")
    parser.add_argument("--ends", default="8", help="logsnr of the last evaluation")
    parser.add_argument("--steps", default="18,28", help="numbers of steps")
    parser.add_argument("--etas", default="0,0.3,0.6,1", help="from the ODE (0) to the SDE (1)")
    args = parser.parse_args(argv)
    configure_logging()
    store, bundle, cases = chosen(args)
    truth = np.stack([observed(store, case) for case in cases])
    print(HEAD, "|" + "---|" * 12, observed_row(truth, store), sep="\n")
    with cluster(RaySettings()):
        tried = (args.starts, args.ends, args.steps, args.etas)
        for start, end, steps, eta in product(*(each.split(",") for each in tried)):
            sampler = replace(
                bundle.sampler,
                logsnr_min=float(start),
                logsnr_max=float(end),
                num_steps=int(steps),
                eta=float(eta),
            )
            begun = time.monotonic()
            masks = draw(store, cases, args.bundle.absolute(), sampler, samples=args.samples)
            cost = 2 * (time.monotonic() - begun) / (len(cases) * args.samples)
            print(row(sampler, masks, truth, store, cost=cost), flush=True)
    return 0


def observed(store: Store, case: Case) -> Masks:
    """NET2 at w096, [s, h, w]."""
    return store.read(case.index).masks[SESSIONS.index("w096"), MASKS.index("net2")].astype(bool)


def draw(
    store: Store, cases: Sequence[Case], bundle: Path, sampler: SamplerConfig, *, samples: int
) -> Masks:
    """The samples of every case under its own arm, on two actors: [case, sample, s, h, w]."""
    seeds = seeds_of(cases, seed=0, samples=samples)
    requests = [Request(case.index, case.arm_index) for case in cases]
    batches = plan(requests, seeds, batch_size=8)
    inputs = store.table.inputs
    build = partial(build_sampler, bundle, store.path, device="cpu", inputs=inputs, sampler=sampler)
    drawn = map_on_actors(build, batches, workers=2)
    pieces: list[Drawn] = list(with_progress(drawn, total=len(batches), label="batches drawn"))
    masks = np.concatenate([piece.masks() for piece in pieces])
    return masks.reshape(len(cases), samples, *masks.shape[1:])


def row(sampler: SamplerConfig, masks: Masks, truth: Masks, store: Store, *, cost: float) -> str:
    """What the samples are worth; `cost` is seconds of one core for a sample."""
    counts = np.array([[counted(mask, store) for mask in of_case] for of_case in masks], float)
    true = np.array([counted(mask, store) for mask in truth], float)
    active, chance = true > 0, (counts > 0).mean(axis=1)
    return (
        f"| {sampler.logsnr_min:g} | {sampler.logsnr_max:g} | {sampler.num_steps} "
        f"| {sampler.eta:g} | {cost:.2f} | {chance.mean():.3f} | {counts.mean():.2f} "
        f"| {masks.sum() / max(counts.sum(), 1):.1f} "
        f"| {roc_auc_score(active, chance):.3f} | {crps(true, counts).mean():.3f} "
        f"| {log_count_errors(true, counts.mean(axis=1)).mean():.3f} "
        f"| {diversity(masks[active]):.3f} |"
    )


def observed_row(truth: Masks, store: Store) -> str:
    """What was observed of the same cases."""
    true = np.array([counted(mask, store) for mask in truth])
    return (
        f"| observed | | | | | {(true > 0).mean():.3f} | {true.mean():.2f} "
        f"| {truth.sum() / true.sum():.1f} | | | | |"
    )


def counted(mask: Masks, store: Store) -> int:
    """Lesions of a mask as drawn."""
    return measure(mask, store.spec.spacing).plain


def diversity(masks: Masks) -> float:
    """Mean Dice distance of two samples of a case (0 where both are empty), of [n, k, s, h, w]."""
    first, second = zip(*combinations(range(masks.shape[1]), 2), strict=True)
    axes = (2, 3, 4)
    both = (masks[:, first] & masks[:, second]).sum(axis=axes)
    either = masks[:, first].sum(axis=axes) + masks[:, second].sum(axis=axes)
    return float(np.mean(np.where(either > 0, 1 - 2 * both / np.maximum(either, 1), 0.0)))


if __name__ == "__main__":
    sys.exit(main())
