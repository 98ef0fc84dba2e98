"""Score P(active) from every pattern of missing input, with and without the reader of FLAIR.

    PYTHONPATH=.:platform python tests/benchmarks/prognostic_prior/missing_inputs.py \
        out/demo/store.zarr out/validation/store.zarr

Fit the prior to the first store's training cases: to masks with single channels lost at random, to
masks with whole types of input lost together, and with the reader of FLAIR besides. Score each on
all cases of the second store, such as that of the trial `validation` (`trials.py`), or without one
on the validation cases of the first. No test case is used. Intervals are 95 % over cases. The last
table exchanges the images and masks of the patients of each arm.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from lesioncast.arrays import Bools, Floats
from lesioncast.config import Config, load_config
from lesioncast.diffusion.controlnet import build_lesion_load_prior
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.evaluation.input_ablation import draw_donors
from lesioncast.evaluation.metrics import scores
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    ResampledScore,
    estimate_difference,
    estimate_of,
    resampled_mean,
)
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.training.lesion_load_prior.data import (
    LoadedCases,
    fit_reader,
    load_prior_data,
    with_readings,
)
from lesioncast.training.lesion_load_prior.dropout import PriorDropout
from lesioncast.training.lesion_load_prior.fit import fit_lesion_load_prior
from storage import open_store, parse_location

BOOTSTRAP = Bootstrap(1000, 0)
NO_TYPES = {"gadolinium": 0.0, "t2_and_gadolinium": 0.0, "masks": 0.0}

Shows = Callable[[str, str], bool]
"""Whether a pattern shows a channel, given its session and kind."""
PATTERNS: dict[str, Shows] = {
    "all": lambda session, kind: True,
    "no gadolinium": lambda session, kind: kind != "gad",
    "no T2, no gadolinium": lambda session, kind: kind in ("flair", "net2"),
    "FLAIR of both sessions alone": lambda session, kind: kind == "flair",
    "w000, all": lambda session, kind: session == "w000",
    "w000, no gadolinium": lambda session, kind: session == "w000" and kind != "gad",
    "w000, FLAIR alone": lambda session, kind: session == "w000" and kind == "flair",
    "no image": lambda session, kind: False,
}


class FittedPrior(NamedTuple):
    """A fitted prior and what it reads of the scored cases."""

    name: str
    prior: LesionLoadPrior
    scored: LoadedCases


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the priors and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=parse_location, nargs="+")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="of the scored cases, the first so many")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many of them")
    args = parser.parse_args(argv)
    config = load_config(args.config, ["flair_reader=true"])
    first, *others = map(open_store, args.stores)
    scored_store = others[0] if others else first
    scored_cases = others[0].cases if others else first.select(split="val")
    scored_cases = cases_with_outcome(scored_cases)[: args.cases][args.skip :]
    train = load_prior_data(cases_with_outcome(first.select(split="train")), first, config.model)
    scored = load_prior_data(scored_cases, scored_store, config.model)
    priors = list(fit_priors(train, scored, config, seed=args.seed))
    active = (scored.data.lesion_load > 0).numpy()
    print(f"{len(active)} cases, {active.mean():.3f} active; seed {args.seed}\n")
    print("| input | prior | AUC | AUC within arms | AP | Brier | mean P(active) - observed |")
    print("|---|---|---|---|---|---|---|")
    for pattern, shows in PATTERNS.items():
        for one in priors:
            print(f"| {pattern} | {one.name} | {score_cells(one, shows, active)} |", flush=True)
    print("\n| input | prior | AUC within arms, images exchanged | minus own images |")
    print("|---|---|---|---|")
    for pattern in ("all", "FLAIR of both sessions alone", "w000, FLAIR alone"):
        cells = exchange_cells(priors[-1], PATTERNS[pattern], active)
        print(f"| {pattern} | {priors[-1].name} | {cells} |", flush=True)
    return 0


def fit_priors(
    train: LoadedCases, scored: LoadedCases, config: Config, *, seed: int
) -> Iterator[FittedPrior]:
    """Yield the prior of masks under two kinds of dropout, then the one with the reader."""
    rates = config.finetune.dropout_rates
    together = PriorDropout(rates)
    for name, dropout, reads in (
        ("masks, lost one by one", PriorDropout(rates, **NO_TYPES), False),
        ("masks, types lost together", together, False),
        ("masks and reader of FLAIR", together, True),
    ):
        model = config.model
        control = model.control if reads else replace(model.control, flair_reader_spacing=None)
        torch.manual_seed(seed)
        prior = build_lesion_load_prior(control, model.unet, ())
        assert prior is not None
        data = fit_reader(prior, train, seed=seed)
        fit_lesion_load_prior(prior, data, dropout, seed=seed)
        yield FittedPrior(name, prior, scored._replace(data=with_readings(prior, scored)))


@torch.no_grad()
def p_active(fitted: FittedPrior, shows: Shows, *, donors: torch.Tensor | None = None) -> Floats:
    """Return P(active) of the scored cases from what a pattern shows, [n].

    `donors` [n] are the rows of the patients whose images and masks are taken.
    """
    features = features_of_pattern(fitted, shows, donors=donors)
    return fitted.prior.expectations(features, fitted.scored.data.arm).p_active.numpy()


def features_of_pattern(
    fitted: FittedPrior, shows: Shows, *, donors: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the features of the scored cases, or of their donors, that a pattern shows, [n, k]."""
    prior = fitted.prior
    data = fitted.scored.data if donors is None else fitted.scored.data.rows(donors)
    shown = torch.tensor([shows(*name.split("/")) for name in prior.channels])
    data = replace(data, burden=data.burden.masked_fill(~shown[:, None], 0))
    return data.patient_features(prior)


def score_cells(fitted: FittedPrior, shows: Shows, active: Bools) -> str:
    """Return the scores of a prior from what a pattern shows, as cells of a table."""
    p, arm = p_active(fitted, shows), fitted.scored.data.arm.numpy()
    functions: tuple[ResampledScore, ...] = (
        lambda weights: scores.resampled_auc(active, p, weights),
        lambda weights: scores.resampled_auc_within(active, p, arm, weights),
        lambda weights: scores.resampled_ap(active, p, weights),
        lambda weights: resampled_mean((p - active) ** 2, weights),
        lambda weights: resampled_mean(p - active, weights),
    )
    weights = BOOTSTRAP.weights(len(active))
    return " | ".join(cell(estimate_of(function, weights)) for function in functions)


def exchange_cells(fitted: FittedPrior, shows: Shows, active: Bools) -> str:
    """Return the AUC within arms with the images of another patient, and minus the own."""
    arm = fitted.scored.data.arm.numpy()
    donors = draw_donors(arm, seed=0)
    own, others = (
        p_active(fitted, shows, donors=rows) for rows in (None, torch.from_numpy(donors))
    )

    def auc(p: Floats) -> ResampledScore:
        return lambda weights: scores.resampled_auc_within(active, p, arm, weights)

    weights = BOOTSTRAP.weights(len(active))
    difference = estimate_difference(auc(others), auc(own), weights)
    return f"{cell(estimate_of(auc(others), weights))} | {cell(difference)}"


def cell(value: Estimate) -> str:
    """Return an estimate with its interval."""
    if value.value is None or value.low is None or value.high is None:
        return "undefined"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
