"""Compare solvers with a bundle's networks: forecast quality against network evaluations.

    PYTHONPATH=.:platform python tests/benchmarks/sampling/solvers.py \
        --bundle out/demo/bundle --store STORE

The cases are those of the validation split, so that choosing a solver does not use the test split;
any split of a trial that the bundle was not trained on will do. `--starts` and `--ends` give the
range of logsnr, `--steps` the number of steps, `--etas` the noise of sde-dpmsolver++ (0 is the
ODE), and `--guidances` the guidance. All other settings are those of the bundle.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.cluster.connection import RaySettings, ray_cluster
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.evaluation.metrics.bootstrap import LEVEL, bootstrap_weights, resampled_mean
from lesioncast.evaluation.metrics.scores import (
    crps,
    log_count_errors,
)
from lesioncast.forecasting.runtime import build_sampler
from lesioncast.forecasting.sampling import (
    EnsembleRequest,
    SampleBatch,
    independent_seeds,
    plan_batches,
    seeds_of,
)
from lesioncast.imaging.channels import MASKS, SESSIONS
from lesioncast.imaging.lesions import count_lesions
from lesioncast.jobs.command.runner import configure_logging
from storage import Case, Store
from tests.benchmarks.sampling.study_cli import load_study, study_parser

HEAD = (
    "| solver | from | to | eta | guidance | evaluations | s a sample | P(active) | count "
    "| minus observed | voxels a lesion | AUC | count CRPS | log-count MSE | diversity |"
)
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
Masks = npt.NDArray[np.bool_]


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the same cases with every solver and print a table."""
    parser = study_parser(__doc__, cases=160, split="val")
    parser.add_argument("--samples", type=int, default=4, help="a case")
    parser.add_argument(
        "--solvers", default="sde-dpmsolver++", help="ancestral, ddim, dpmsolver++, sde-dpmsolver++"
    )
    parser.add_argument("--starts", default="-4", help="logsnr of the second evaluation")
    parser.add_argument("--ends", default="8", help="logsnr of the last evaluation")
    parser.add_argument("--steps", default="18,28", help="numbers of steps")
    parser.add_argument(
        "--etas", default="0,0.3,0.6,1", help="of sde-dpmsolver++, 0 the ODE to 1 the SDE"
    )
    parser.add_argument("--guidances", default="1", help="1 is conditional")
    args = parser.parse_args(argv)
    configure_logging()
    store, bundle, cases = load_study(args)
    truth = np.stack([observed_mask(store, case) for case in cases])
    print(HEAD, "|" + "---|" * 15, observed_row(truth, store), sep="\n")
    with ray_cluster(RaySettings()):
        for sampler in sampler_configs(args, bundle.config.sampler):
            begun = time.monotonic()
            masks = draw(store, cases, args.bundle.absolute(), sampler, samples=args.samples)
            cost = 2 * (time.monotonic() - begun) / (len(cases) * args.samples)
            print(row(sampler, masks, truth, store, cost=cost), flush=True)
    return 0


def sampler_configs(args: argparse.Namespace, shipped: SamplerConfig) -> list[SamplerConfig]:
    """Return every combination. A solver without eta occurs once."""
    options = (args.solvers, args.starts, args.ends, args.steps, args.etas, args.guidances)
    choices = [option.split(",") for option in options]
    configs = [
        replace(
            shipped,
            solver=solver,
            logsnr_min=float(start),
            logsnr_max=float(end),
            num_steps=int(steps),
            eta=float(eta) if solver == "sde-dpmsolver++" else shipped.eta,
            guidance=float(guidance),
        )
        for solver, start, end, steps, eta, guidance in product(*choices)
    ]
    return list(dict.fromkeys(configs))


def observed_mask(store: Store, case: Case) -> Masks:
    """Return the observed NET2 mask at w096, [s, h, w]."""
    return store.read(case.index).masks[SESSIONS.index("w096"), MASKS.index("net2")].astype(bool)


def draw(
    store: Store, cases: Sequence[Case], bundle: Path, sampler: SamplerConfig, *, samples: int
) -> Masks:
    """Sample every case under its factual arm on two actors: [case, sample, s, h, w]."""
    seeds = seeds_of(cases, seed=0, samples=samples, scheme=independent_seeds)
    requests = [EnsembleRequest(case.index, case.arm_index) for case in cases]
    batches = plan_batches(requests, seeds, batch_size=8)
    inputs = store.table.inputs
    build = partial(build_sampler, bundle, store.path, device="cpu", inputs=inputs, sampler=sampler)
    drawn = ordered_actor_map(build, batches, workers=2)
    pieces: list[SampleBatch] = list(
        with_progress(drawn, total=len(batches), label="batches drawn")
    )
    masks = np.concatenate([piece.masks() for piece in pieces])
    return masks.reshape(len(cases), samples, *masks.shape[1:])


def row(sampler: SamplerConfig, masks: Masks, truth: Masks, store: Store, *, cost: float) -> str:
    """Return the line of one sampler. `cost` is the seconds of one core for a sample.

    The evaluations are those of a sample that runs to the last step; guidance takes two a step.
    """
    counts = np.array([[lesion_count(mask, store) for mask in of_case] for of_case in masks], float)
    true = np.array([lesion_count(mask, store) for mask in truth], float)
    active, chance = true > 0, (counts > 0).mean(axis=1)
    bias = counts.mean(axis=1) - true
    low, high = np.quantile(
        resampled_mean(bias, bootstrap_weights(len(bias), draws=1000, seed=0)), ENDS
    )
    return (
        f"| {sampler.solver} | {sampler.logsnr_min:g} | {sampler.logsnr_max:g} "
        f"| {f'{sampler.eta:g}' if sampler.solver == 'sde-dpmsolver++' else ''} "
        f"| {sampler.guidance:g} "
        f"| {sampler.num_steps * (1 if sampler.guidance == 1 else 2)} | {cost:.2f} "
        f"| {chance.mean():.3f} | {counts.mean():.2f} "
        f"| {bias.mean():+.2f} ({low:+.2f} to {high:+.2f}) "
        f"| {masks.sum() / max(counts.sum(), 1):.1f} "
        f"| {roc_auc_score(active, chance):.3f} | {crps(true, counts).mean():.3f} "
        f"| {log_count_errors(true, counts.mean(axis=1)).mean():.3f} "
        f"| {diversity(masks[active]):.3f} |"
    )


def observed_row(truth: Masks, store: Store) -> str:
    """Return the line of the observed masks of the same cases."""
    true = np.array([lesion_count(mask, store) for mask in truth])
    return (
        f"| observed | | | | | | | {(true > 0).mean():.3f} | {true.mean():.2f} "
        f"| | {truth.sum() / true.sum():.1f} | | | | |"
    )


def lesion_count(mask: Masks, store: Store) -> int:
    """Count the lesions of a mask without opening."""
    return count_lesions(mask, store.spec.spacing).plain


def diversity(masks: Masks) -> float:
    """Return the mean Dice distance of two samples of a case; two empty samples have distance 0.

    `masks` has the shape [n, k, s, h, w].
    """
    first, second = zip(*combinations(range(masks.shape[1]), 2), strict=True)
    axes = (2, 3, 4)
    both = (masks[:, first] & masks[:, second]).sum(axis=axes)
    either = masks[:, first].sum(axis=axes) + masks[:, second].sum(axis=axes)
    return float(np.mean(np.where(either > 0, 1 - 2 * both / np.maximum(either, 1), 0.0)))


if __name__ == "__main__":
    sys.exit(main())
