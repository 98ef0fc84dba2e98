"""Score regional risks in closed form, and as shares of samples, on validation cases.

    PYTHONPATH=.:platform python tests/benchmarks/studies/regional_risk.py --bundle BUNDLE \
        --store STORE

The bundle has a base map. Each validation case is forecast under the arm that it received, from all
its images. Rows are the closed form of `forecasting/regional_risk.py`, the same with ratios of 1,
P(active), and what the share of 16 independent samples of the same risk p would have: its Brier
score is higher by p (1 - p) / 16 on average. `--samples` also draws samples of the bundle. Ratios
are measured on the store's training cases. Intervals are 95 % bootstrap intervals over cases. No
test case is read.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lesioncast.arrays import Bools, Floats, evenly_spaced
from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.evaluation.features.image_features import observed_outcome
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.regional_risk import region_shares, risk_of_region
from lesioncast.forecasting.runtime import (
    bundle_sampler,
    make_expectation_predictor,
    maps_of_requests,
    store_reader,
)
from lesioncast.forecasting.sampling import EnsembleRequest, ModelInput, Sample, independent_seeds
from lesioncast.imaging.regions import (
    REGIONS,
    lesions_in_regions,
    regional_lesions,
    touching_ratios,
)
from lesioncast.markdown import format_estimate, markdown_table
from storage import Case, Store, open_store, parse_location

CLOSED_FORM, PLAIN, ACTIVE = "closed form", "closed form, ratios of 1", "P(active)"
SHARE_OF = 16  # samples of a forecast


class Forecast(NamedTuple):
    """Risk of each region by row of the table, and which regions had a lesion, [region] each."""

    risks: Mapping[str, Floats]
    observed: Bools


def main(argv: Sequence[str] | None = None) -> int:
    """Forecast the cases and print a table for each region."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--store", type=parse_location, required=True)
    parser.add_argument("--cases", type=int, default=0, help="validation cases; 0 is all")
    parser.add_argument("--train", type=int, default=600, help="training cases for the ratios")
    parser.add_argument("--samples", type=int, default=0, help="samples a case; 0 draws none")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store, bundle = open_store(args.store), load_bundle(args.bundle.absolute())
    ratios = measured_ratios(store, args.train)
    print("ratios:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    cases = cases_with_outcome(store.select(split="val"))
    forecasts = [
        forecast_case(bundle, store, case, ratios, samples=args.samples, seed=args.seed)
        for case in evenly_spaced(cases, args.cases or len(cases))
        if case.parcellation
    ]
    print("\n\n".join(tables(forecasts, seed=args.seed)))
    return 0


def measured_ratios(store: Store, number: int) -> dict[str, float]:
    """Return the touching ratios of `number` training cases."""
    counts = []
    for case in evenly_spaced(cases_with_outcome(store.select(split="train")), number):
        images = store.read(case.index)
        outcome = observed_outcome(images)
        if outcome is not None and outcome.net2.any() and case.parcellation:
            counts.append(regional_lesions(outcome.net2, images.parcellation))
    return touching_ratios(counts)


def forecast_case(
    bundle: Bundle,
    store: Store,
    case: Case,
    ratios: Mapping[str, float],
    *,
    samples: int,
    seed: int,
) -> Forecast:
    """Forecast the regional risks of one case under the arm that it received."""
    images = store.read(case.index)
    outcome = observed_outcome(images)
    assert outcome is not None
    assert case.arm_index is not None
    request = EnsembleRequest(case.index, case.arm_index)
    (probability,) = maps_of_requests(bundle, store, [request]).values()
    shares = region_shares(probability, images.parcellation)
    config = bundle.config.model
    predict = make_expectation_predictor(bundle.priors, config, device="cpu")
    expected = predict(store_reader(store, config)(ModelInput(case.index)))
    assert expected is not None
    outcomes = expected[case.arm_index]
    risks = {
        CLOSED_FORM: _risks({name: ratios[name] * shares[name] for name in REGIONS}, outcomes),
        PLAIN: _risks(shares, outcomes),
        ACTIVE: np.full(len(REGIONS), outcomes.p_active),
    }
    if samples:
        seeds = independent_seeds(seed, case.subject, samples)
        batch = tuple(Sample(request, one) for one in seeds)
        drawn = bundle_sampler(bundle, store, device="cpu")(batch)
        shown = lesions_in_regions(drawn.masks(), images.parcellation)
        risks[f"share of {samples} samples"] = shown.mean(axis=0).astype(np.float64)
    return Forecast(risks, lesions_in_regions(outcome.net2[None], images.parcellation)[0])


def _risks(touching: Mapping[str, float], expected: ExpectedOutcomes) -> Floats:
    return np.array([risk_of_region(touching[name], expected) for name in REGIONS])


def tables(forecasts: Sequence[Forecast], *, seed: int) -> list[str]:
    """Return a table of each region: mean risk and Brier score of every row."""
    weights = Bootstrap(draws=2000, seed=seed).weights(len(forecasts))
    observed = np.array([one.observed for one in forecasts], np.float64)
    parts = []
    for place, region in enumerate(REGIONS):
        rows = []
        truth = observed[:, place]
        for name in forecasts[0].risks:
            risk = np.array([one.risks[name][place] for one in forecasts])
            squared = (risk - truth) ** 2
            rows.append([name, *_cells(risk, squared, risk - truth, weights)])
            if name == CLOSED_FORM:
                sampled = squared + risk * (1 - risk) / SHARE_OF
                share = f"share of {SHARE_OF} samples of this risk"
                rows.append([share, *_cells(risk, sampled, risk - truth, weights)])
        head = ["risk", "mean", "mean minus observed", "Brier score"]
        parts.append(
            f"{region}: {truth.sum():.0f} of {len(truth)} cases, {truth.mean():.3f}\n\n"
            f"{markdown_table(head, rows)}"
        )
    return parts


def _cells(risk: Floats, squared: Floats, error: Floats, weights: Floats) -> list[str]:
    return [
        f"{risk.mean():.3f}",
        format_estimate(estimate_mean(error, weights)),
        format_estimate(estimate_mean(squared, weights), digits=4),
    ]


if __name__ == "__main__":
    sys.exit(main())
