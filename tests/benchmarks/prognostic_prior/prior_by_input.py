"""Score the prognostic priors of bundles from every pattern of input, and their counts by arm.

    PYTHONPATH=.:platform python tests/benchmarks/prognostic_prior/prior_by_input.py \
        out/seed-0/bundle out/seed-1/bundle --store out/validation/store.zarr \
        --bids out/validation/bids

Bundles that were trained with different seeds show how much a seed matters. The cases are the test
cases of the store, and no bundle may have been trained on one of them. The first table scores
P(active) under the arm received. The second exchanges the images and masks of the patients of each
arm. The third compares the expected number of lesions of all cases under every arm, from w000
alone, with the true number in the masks that the simulation drew for that arm. Brackets are 95 %
bootstrap intervals over cases.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lesioncast.arrays import Bools, Floats
from lesioncast.bundle.bundle import BundlePrior, load_bundle_prior
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean
from lesioncast.evaluation.run import select_evaluation_cases
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.training_data import check_unseen
from lesioncast.imaging.lesions import components
from lesioncast.simulation.ground_truth import counterfactual_net2
from lesioncast.training.lesion_load_prior.data import (
    LoadedCases,
    load_prior_data,
    with_readings,
)
from storage import Case, Store, open_store, parse_location
from tests.benchmarks.prognostic_prior.missing_inputs import (
    PATTERNS,
    FittedPrior,
    cell,
    exchange_cells,
    features_of_pattern,
    score_cells,
)

BOOTSTRAP = Bootstrap(1000, 0)
EXCHANGED = ("all", "FLAIR of both sessions alone", "w000, FLAIR alone")
BASELINE_ALONE = "w000, all"
TOLERANCE = 0.10
LEAST_DIFFERENCE = 0.05  # lesions; a tenth of a count near 0 would be less than anyone can measure


def main(argv: Sequence[str] | None = None) -> int:
    """Read the cases once, and print the tables of each bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--store", type=parse_location, required=True)
    parser.add_argument("--bids", type=Path, help="the simulated trial, for the counts by arm")
    parser.add_argument("--cases", type=int, help="of the scored cases, the first so many")
    args = parser.parse_args(argv)
    store = open_store(args.store)
    cases = select_evaluation_cases(store, EvaluationSettings()).test[: args.cases]
    priors = [load_bundle_prior(path.absolute()) for path in args.bundles]
    for one in priors:
        check_unseen(one, cases)
    loaded = load_prior_data(cases, store, priors[0].config.model)
    fitted = [fitted_prior(one, loaded) for one in priors]
    active = (loaded.data.lesion_load > 0).numpy()
    print(f"{len(active)} cases, {int(active.sum())} active\n")
    print("\n".join((*input_lines(fitted, active), "", *exchange_lines(fitted, active))))
    if args.bids is not None:
        true = true_lesions(cases, store, args.bids)
        print("\n".join(("", *count_lines(fitted, true, store.spec.arms))))
    return 0


def fitted_prior(bundle: BundlePrior, loaded: LoadedCases) -> FittedPrior:
    """Return a bundle's only prior with what it reads of the cases; else raise SystemExit."""
    if len(bundle.priors) != 1:
        raise SystemExit(
            f"{bundle.path}: expected a bundle with one lesion load prior, got {len(bundle.priors)}"
        )
    (prior,) = bundle.priors
    name = f"{bundle.path.parent.name} {bundle.digest[:8]}"
    with torch.no_grad():
        data = with_readings(prior, loaded)
    return FittedPrior(name, prior, loaded._replace(data=data))


def input_lines(fitted: Sequence[FittedPrior], active: Bools) -> Iterator[str]:
    """Yield a table with the scores of each prior from each pattern of input."""
    yield "| input | bundle | AUC | AUC within arms | AP | Brier | mean P(active) - observed |"
    yield "|" + "---|" * 7
    for pattern, shows in PATTERNS.items():
        for one in fitted:
            yield f"| {pattern} | {one.name} | {score_cells(one, shows, active)} |"


def exchange_lines(fitted: Sequence[FittedPrior], active: Bools) -> Iterator[str]:
    """Yield a table with the scores of each prior from images of other patients of the arm."""
    yield "| input | bundle | AUC within arms, images exchanged | minus own images |"
    yield "|" + "---|" * 4
    for pattern in EXCHANGED:
        for one in fitted:
            yield f"| {pattern} | {one.name} | {exchange_cells(one, PATTERNS[pattern], active)} |"


def count_lines(fitted: Sequence[FittedPrior], true: Floats, arms: Sequence[str]) -> Iterator[str]:
    """Yield a table with mean expected and true lesions, `true` [arm, n], under each arm."""
    weights = BOOTSTRAP.weights(true.shape[1])
    yield "| arm | bundle | expected lesions | true lesions | expected minus true | within 10 % |"
    yield "|" + "---|" * 6
    for row, arm in enumerate(arms):
        for one in fitted:
            expected = expected_lesions(one, row)
            error = expected.mean() - true[row].mean()
            allowed = max(TOLERANCE * true[row].mean(), LEAST_DIFFERENCE)
            yield (
                f"| {arm} | {one.name} | {expected.mean():.3f} | {true[row].mean():.3f} "
                f"| {cell(estimate_mean(expected - true[row], weights))} "
                f"| {'yes' if abs(error) <= allowed else 'no'} |"
            )


@torch.no_grad()
def expected_lesions(fitted: FittedPrior, arm: int) -> Floats:
    """Return the expected number of lesions of each case under an arm from w000 alone, [n]."""
    features = features_of_pattern(fitted, PATTERNS[BASELINE_ALONE])
    arms = torch.full_like(fitted.scored.data.arm, arm)
    return fitted.prior.expectations(features, arms).lesions.numpy()


def true_lesions(cases: Sequence[Case], store: Store, bids: Path) -> Floats:
    """Return the number of lesions of each case in the simulation's mask of each arm, [arm, n]."""
    arms = store.spec.arms
    masks = (counterfactual_net2(bids, case.subject, case.grid, arms=arms) for case in cases)
    return np.array([[components(mask)[1] for mask in of_case] for of_case in masks]).T.astype(
        float
    )


if __name__ == "__main__":
    sys.exit(main())
