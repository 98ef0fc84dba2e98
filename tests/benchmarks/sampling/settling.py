"""Show what a sample's mask still changes once few voxels are expected to change.

    PYTHONPATH=.:platform python tests/benchmarks/sampling/settling.py \
        --bundle out/demo/bundle --store STORE

Each sample takes all steps of the bundle's sampler. For each value of `sampler.undecided_voxels`,
its mask at the step where it would have ended is compared with its final mask. Printed are, over
the samples with lesions, the mean number of network evaluations, the share of masks that change
later, and the voxels and lesions that differ, and over cases the differences of the CRPS of the
count and of the kernel score in percent of their means, with 95 % bootstrap intervals. Samples and
noise are the same for every value, and no network is evaluated twice.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.continuous_batching import ContinuousBatcher, run_until_idle
from lesioncast.diffusion.model import CPU_BATCH_SIZE, SampleCondition, is_decided
from lesioncast.diffusion.objective import NET2
from lesioncast.evaluation.metrics.bootstrap import bootstrap_weights, resampled_mean
from lesioncast.evaluation.metrics.scores import crps
from lesioncast.evaluation.where.kernel_score import kernel_scores
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput, independent_seeds
from lesioncast.imaging.lesions import components
from storage import Case, Store
from tests.benchmarks.sampling.solvers import ENDS, observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser

HEAD = (
    "| undecided voxels | evaluations | masks that change | voxels that change | lesions | "
    "final lesions | count CRPS | kernel score |"
)
DRAWS = 5000


@dataclass(frozen=True)
class Trajectories:
    """Masks of n samples at the step where each of k limits ends them, and in the end."""

    #: Masks [k, n, s, h, w].
    masks: Bools
    #: Masks after all steps [n, s, h, w].
    final: Bools
    #: Network evaluations until then [k, n].
    evaluations: Ints


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the cases and print one row for each limit."""
    parser = study_parser(__doc__, cases=40, split="val")
    parser.add_argument("--samples", type=int, default=4, help="a case, 2 or more")
    parser.add_argument("--limits", default="0.3,0.6,1,2,4")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    limits = [float(limit) for limit in args.limits.split(",")]
    encode = PatientEncoder(bundle, device="cpu")
    read = store_reader(store, bundle.config.model)
    seeds = [independent_seeds(0, case.subject, args.samples) for case in cases]
    conditions = [
        condition
        for case, of_case in zip(cases, seeds, strict=True)
        for condition in bundle.model.sample_conditions(
            encode(read(ModelInput(case.index)))[0], case.arm_index, of_case
        )
    ]
    flat = [seed for of_case in seeds for seed in of_case]
    found = trajectories(bundle, conditions, flat, limits)
    print(f"{len(cases)} cases of {args.split}, {args.samples} samples each")
    print(HEAD, "|" + "---|" * 8, sep="\n")
    with_lesions = np.array([condition.lesion_load != 0 for condition in conditions])
    scores = [scores_of(store, cases, masks) for masks in (*found.masks, found.final)]
    for index, limit in enumerate(limits):
        print(row(limit, found, index, with_lesions, scores[index], scores[-1]))
    return 0


def trajectories(
    bundle: Bundle,
    conditions: Sequence[SampleCondition],
    seeds: Sequence[int],
    limits: Sequence[float],
) -> Trajectories:
    """Sample every condition with all steps; samples without lesions take none."""
    shape = bundle.config.slab
    masks = np.zeros((len(limits), len(conditions), *shape), bool)
    final = np.zeros((len(conditions), *shape), bool)
    evaluations = np.zeros((len(limits), len(conditions)), np.int64)
    rows = [row for row, condition in enumerate(conditions) if condition.lesion_load != 0]
    process = bundle.model.reverse_process(
        replace(bundle.config.sampler, undecided_voxels=0.0),
        spatial_shape=shape,
        device=torch.device("cpu"),
        slots=CPU_BATCH_SIZE,
    )
    for first in range(0, len(rows), CPU_BATCH_SIZE):
        # They enter together and end together, so that rows of x_hat stay those of `group`.
        group = rows[first : first + CPU_BATCH_SIZE]

        def record(x_hat: Tensor, group: Sequence[int] = group) -> Tensor:
            for index, limit in enumerate(limits):
                ended = is_decided(x_hat, undecided_voxels=limit).tolist()
                for sample, x, ends in zip(group, x_hat, ended, strict=True):
                    if evaluations[index, sample] >= 0:
                        evaluations[index, sample] += 1
                        final_x = process.finalise(conditions[sample], x.clone())
                        masks[index, sample] = (final_x[NET2] > 0).numpy()
                        if ends:  # negative: it has ended
                            evaluations[index, sample] *= -1
            return torch.zeros(len(x_hat), dtype=torch.bool)

        batcher = ContinuousBatcher(replace(process, is_decided=record), slots=CPU_BATCH_SIZE)
        x = run_until_idle(
            batcher, [conditions[row] for row in group], [seeds[row] for row in group]
        )
        final[group] = (x[:, NET2] > 0).numpy()
        print(f"{first + len(group)} of {len(rows)} samples", file=sys.stderr, flush=True)
    return Trajectories(masks, final, np.abs(evaluations))


def scores_of(store: Store, cases: Sequence[Case], masks: Bools) -> Floats:
    """Return CRPS of the count and mean kernel score of each case's samples, [case, 2]."""
    of_cases = masks.reshape(len(cases), -1, *masks.shape[1:])
    scores = []
    for case, samples in zip(cases, of_cases, strict=True):
        truth = observed_mask(store, case)
        counts = np.array([[components(mask)[1] for mask in samples]], float)
        count = crps(np.array([components(truth)[1]], float), counts)[0]
        scores.append((count, kernel_scores(samples, truth, store.spec.spacing).mean()))
    return np.array(scores)


def row(
    limit: float,
    found: Trajectories,
    index: int,
    with_lesions: Bools,
    scores: Floats,
    final_scores: Floats,
) -> str:
    """Return the line of a limit."""
    masks, final = found.masks[index][with_lesions], found.final[with_lesions]
    changed = (masks != final).reshape(len(masks), -1).sum(1)
    lesions, final_lesions = (
        np.mean([components(mask)[1] for mask in each]) for each in (masks, final)
    )
    return (
        f"| {limit:g} | {found.evaluations[index][with_lesions].mean():.2f} "
        f"| {np.mean(changed > 0):.3f} | {changed.mean():.3f} "
        f"| {lesions:.3f} | {final_lesions:.3f} | "
        + " | ".join(percent(scores[:, score], final_scores[:, score]) for score in (0, 1))
        + " |"
    )


def percent(values: Floats, reference: Floats) -> str:
    """Return the mean difference in percent of the mean reference, with its interval."""
    weights = bootstrap_weights(len(values), draws=DRAWS, seed=0)
    drawn = 100 * resampled_mean(values - reference, weights) / resampled_mean(reference, weights)
    low, high = np.quantile(drawn, ENDS)
    mean = 100 * (values - reference).mean() / reference.mean()
    return f"{mean:+.2f} % ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    sys.exit(main())
