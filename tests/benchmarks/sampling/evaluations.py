"""Find how many network evaluations a sample needs: score samplers beside that of a bundle.

    PYTHONPATH=.:platform python tests/benchmarks/sampling/evaluations.py \
        --bundle out/demo/bundle --store STORE --samplers "{num_steps: 20}" "{eta: 0.5}"

Each sampler is given by the settings in which it differs from that of the bundle, the reference.
All samplers take turns on the same cases, a few at a time. Members of an ensemble are independent.
Printed are, for each sampler, the evaluations of the networks and the processor seconds of a sample
with lesions, and the differences from the reference with 95 % bootstrap intervals over cases: of
the CRPS of the count and of the kernel score, which is an energy distance, in percent of the
reference's mean, and of the active fraction. `--active` keeps the cases with new lesions alone.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

from lesioncast.arrays import Bools, Floats
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.diffusion.continuous_batching import SampleRequest
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.evaluation.metrics.bootstrap import bootstrap_weights, resampled_mean
from lesioncast.evaluation.metrics.scores import crps
from lesioncast.evaluation.where.kernel_score import kernel_scores
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput, independent_seeds
from lesioncast.imaging.lesions import components
from lesioncast.parsing import parse_dataclass
from lesioncast.yaml_text import parse_yaml
from storage import Case, Store
from tests.benchmarks.sampling.solvers import ENDS, observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser

CASES_A_TURN = 40
DRAWS = 5000
SCORES = ("count CRPS", "kernel score", "active fraction")
HEAD = (
    "| sampler | samples with lesions | evaluations | processor s | lesions | voxels a lesion "
    "| count CRPS | kernel score | active fraction |"
)


class Cost(NamedTuple):
    """Samples with lesions, rows of forward passes without and with padding, and seconds."""

    samples: int
    evaluations: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Results:
    """Results of one sampler on n cases: scores [n, score], and sums of the samples drawn."""

    scores: Floats
    cost: Cost
    lesions: int
    voxels: int

    def join(self, other: "Results") -> "Results":
        """Return the results on the cases of both."""
        return Results(
            np.concatenate([self.scores, other.scores]),
            Cost(*map(sum, zip(self.cost, other.cost, strict=True))),
            self.lesions + other.lesions,
            self.voxels + other.voxels,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Sample the cases with all samplers in turn and print a table."""
    parser = study_parser(__doc__, cases=1000, split="val")
    parser.add_argument("--samples", type=int, default=4, help="a case, 2 or more")
    parser.add_argument("--samplers", nargs="+", default=[], help="such as {num_steps: 20}")
    parser.add_argument("--active", action="store_true", help="cases with new lesions alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    check_compatible(bundle, store)
    if args.active:
        cases = [case for case in cases if observed_mask(store, case).any()]
    samplers = samplers_of(bundle.config.sampler, args.samplers)
    study = Study(bundle, store, args.samples)
    found: dict[str, Results] = {}
    for first in range(0, len(cases), CASES_A_TURN):
        turn = cases[first : first + CASES_A_TURN]
        for name, sampler in samplers.items():
            drawn = study.results(turn, sampler)
            found[name] = found[name].join(drawn) if name in found else drawn
        print(f"{first + len(turn)} of {len(cases)} cases", file=sys.stderr, flush=True)
    print(f"{len(cases)} cases of {args.split}, {args.samples} samples each")
    print(HEAD, "|" + "---|" * 9, sep="\n")
    reference = next(iter(found.values()))
    for name, results in found.items():
        print(row(name, results, reference))
    return 0


def samplers_of(shipped: SamplerConfig, variants: Sequence[str]) -> dict[str, SamplerConfig]:
    """Return the reference and each variant by name. Raise ConfigError for an unknown setting."""
    samplers = {"reference": shipped}
    for variant in variants:
        settings = asdict(shipped) | parse_yaml(variant, source="--samplers")
        samplers[variant] = parse_dataclass(SamplerConfig, settings, source="--samplers")
    return samplers


@dataclass(frozen=True)
class Study:
    """Bundle, store and number of samples of a case, the same for every sampler."""

    bundle: Bundle
    store: Store
    samples: int

    def results(self, cases: Sequence[Case], sampler: SamplerConfig) -> Results:
        """Sample the cases under the arm that they received, and score the samples."""
        encode = PatientEncoder(self.bundle, device="cpu")
        read = store_reader(self.store, self.bundle.config.model)
        seeds = [independent_seeds(0, case.subject, self.samples) for case in cases]
        conditions = [
            condition
            for case, of_case in zip(cases, seeds, strict=True)
            for condition in self.bundle.model.sample_conditions(
                encode(read(ModelInput(case.index)))[0], case.arm_index, of_case
            )
        ]
        begun = time.process_time()
        masks, evaluations, rows = self._draw(conditions, sum(seeds, ()), sampler)
        seconds = time.process_time() - begun
        with_lesions = sum(condition.lesion_load != 0 for condition in conditions)
        masks = masks.reshape(len(cases), self.samples, *masks.shape[1:])
        scores, lesions = [], 0
        for case, of_case in zip(cases, masks, strict=True):
            truth = observed_mask(self.store, case)
            counts = np.array([components(mask)[1] for mask in of_case], float)
            lesions += int(counts.sum())
            scores.append(
                (
                    crps(np.array([components(truth)[1]], float), counts[None])[0],
                    kernel_scores(of_case, truth, self.store.spec.spacing).mean(),
                    (counts > 0).mean(),
                )
            )
        cost = Cost(with_lesions, evaluations, rows, seconds)
        return Results(np.array(scores), cost, lesions, int(masks.sum()))

    def _draw(
        self, conditions: Sequence[SampleCondition], seeds: Sequence[int], sampler: SamplerConfig
    ) -> tuple[Bools, int, int]:
        """Return a mask [n, s, h, w] for each condition, and the samples and rows evaluated."""
        batcher = self.bundle.model.batcher(
            sampler, spatial_shape=self.store.spec.slab, device=torch.device("cpu")
        )
        batcher.add(
            SampleRequest(0, row, condition, seeds[row]) for row, condition in enumerate(conditions)
        )
        masks = np.zeros((len(conditions), *self.store.spec.slab), bool)
        evaluations = rows = 0
        while batcher.busy:
            for sample, x in batcher.step():
                masks[sample.name] = (x[NET2] > 0).numpy()
            evaluations += batcher.rows
            rows += batcher.slots if batcher.rows else 0
        return masks, evaluations, rows


def row(name: str, results: Results, reference: Results) -> str:
    """Return the line of a sampler."""
    cost = results.cost
    cells = [
        f"{cost.samples}",
        f"{cost.evaluations / max(cost.samples, 1):.2f}",
        f"{cost.seconds / max(cost.samples, 1):.3f}",
        f"{results.lesions / max(cost.samples, 1):.2f}",
        f"{results.voxels / max(results.lesions, 1):.2f}",
        *(difference(results, reference, score) for score in range(len(SCORES))),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def difference(results: Results, reference: Results, score: int) -> str:
    """Return the difference of a score from the reference with its interval."""
    ours, theirs = results.scores[:, score], reference.scores[:, score]
    if results is reference:
        return f"{theirs.mean():.3f}"
    weights = bootstrap_weights(len(ours), draws=DRAWS, seed=0)
    relative = SCORES[score] != "active fraction"
    drawn = resampled_mean(ours - theirs, weights)
    value = (ours - theirs).mean()
    if relative:
        drawn = 100 * drawn / resampled_mean(theirs, weights)
        value = 100 * value / theirs.mean()
    low, high = np.quantile(drawn, ENDS)
    return (
        f"{value:+.1f} % ({low:+.1f} to {high:+.1f})"
        if relative
        else f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
    )


if __name__ == "__main__":
    sys.exit(main())
