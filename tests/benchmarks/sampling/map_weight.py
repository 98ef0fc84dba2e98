"""Score the map of a forecast by the share that it keeps of the networks.

    PYTHONPATH=.:platform python tests/benchmarks/sampling/map_weight.py \
        --bundle out/demo/bundle --store STORE

For active validation cases, print the gain in nats of the networks' map over the base map alone, at
each `sampler.map_weight`, with a 95 % bootstrap interval over cases.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lesioncast.arrays import Floats
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.evaluation.metrics.bootstrap import bootstrap_weights, resampled_mean
from lesioncast.evaluation.where.density import brain_of, density_in
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.marginal_map import marginal_map
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput
from storage import Case, Store
from tests.benchmarks.sampling.solvers import ENDS, observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser

DRAWS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Score the cases at every weight and print a table."""
    parser = study_parser(__doc__, cases=1000, split="val")
    parser.add_argument("--weights", default="0.25,0.5,0.75,1", help="of the networks")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    check_compatible(bundle, store)
    if bundle.model.base_map is None:
        parser.error(f"{args.bundle}: expected networks with a base map, got none")
    weights = [float(weight) for weight in args.weights.split(",")]
    active = [case for case in cases if observed_mask(store, case).any()]
    gains = np.stack([gains_of(bundle, store, case, weights) for case in active])
    resamples = bootstrap_weights(len(active), draws=DRAWS, seed=0)
    print(f"{len(active)} active cases of {args.split}")
    print("| map_weight | nats a case over the base map |", "|---|---|", sep="\n")
    for weight, gain in zip(weights, gains.T, strict=True):
        low, high = np.quantile(resampled_mean(gain, resamples), ENDS)
        print(f"| {weight:g} | {gain.mean():.2f} ({low:.2f} to {high:.2f}) |")
    return 0


def gains_of(bundle: Bundle, store: Store, case: Case, weights: Sequence[float]) -> Floats:
    """Return the gain of a case's map over its base map at each weight, in nats, [weight]."""
    encode = PatientEncoder(bundle, device="cpu")
    (patient,) = encode(store_reader(store, bundle.config.model)(ModelInput(case.index)))
    images, lesions = store.read(case.index), observed_mask(store, case).astype(bool)
    brain = brain_of(images)
    assert patient.log_density is not None
    base = density_in(brain, patient.log_density[0].exp().numpy())
    found = []
    for weight in weights:
        sampler = replace(bundle.config.sampler, map_weight=weight)
        probability = marginal_map(bundle.model, patient, case.arm_index, sampler).numpy()
        ratio = density_in(brain, probability) / base
        found.append(float(np.log(ratio[lesions[brain]]).sum()))
    return np.array(found)


if __name__ == "__main__":
    sys.exit(main())
