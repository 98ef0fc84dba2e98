"""Compare lesion-load priors fitted to different features and batch sizes with regressions.

    PYTHONPATH=.:platform python tests/benchmarks/prognostic_prior/lesion_load_prior.py \
        out/demo/store.zarr out/validation/store.zarr

Fit the prior to the first store's training cases in several ways with every seed. Score P(active)
at w096 on its validation cases and on all cases of the other stores, such as that of the trial
`validation` (`trials.py`): means over the seeds with their range. No test case is used. Last, fit
it to fewer training cases. Two more tables compare P(active) and the expected count under every
arm, from the images of w000, with the truth of the other stores' simulated trials, without offsets
and slopes of the arms and with them; `--arms` makes these alone, and `--skip` leaves out the first
cases of the other stores. No images are sampled and no other network is needed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lesioncast.arrays import Floats
from lesioncast.config import Config, load_config
from lesioncast.diffusion.controlnet import build_lesion_load_prior
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.evaluation.baselines.baselines import arm_statistics, fit_regression_baseline
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.imaging.features.image_features import image_features
from lesioncast.imaging.lesions import components
from lesioncast.priors.input_patterns import pattern_number
from lesioncast.simulation.ground_truth import counterfactual_net2
from lesioncast.training.lesion_load_prior.calibration import features_of_pattern
from lesioncast.training.lesion_load_prior.data import PriorTrainingData, load_prior_data
from lesioncast.training.lesion_load_prior.dropout import PriorDropout
from lesioncast.training.lesion_load_prior.fit import ROWS, fit_lesion_load_prior
from storage import Case, Store, open_store, parse_location

NUMBER = 2  # place among the numbers of a channel
BASELINE_ALONE = pattern_number(later=False, kind="gad")


class StudyCases(NamedTuple):
    """Cases of a store as input of the prior and of a regression [n, feature].

    `true_lesions` [n, arm] are those that each would have had under each arm of a simulated trial.
    """

    patients: PriorTrainingData
    scalars: Floats
    true_lesions: Floats

    @property
    def arm(self) -> npt.NDArray[np.int64]:
        """The arm of each case, [n]."""
        return self.patients.arm.numpy()

    @property
    def lesions(self) -> Floats:
        """The lesions at w096, [n]."""
        return self.patients.lesions.double().numpy()

    def first(self, number: int) -> "StudyCases":
        """Return the first `number` cases."""
        parts = (getattr(self.patients, each.name)[:number] for each in fields(PriorTrainingData))
        return StudyCases(
            PriorTrainingData(*parts), self.scalars[:number], self.true_lesions[:number]
        )

    def limited(self, *, numbers: bool) -> "StudyCases":
        """Return the cases with or without the numbers of lesions."""
        burden = self.patients.burden.clone()
        burden[:, :, NUMBER] *= numbers
        return self._replace(patients=replace(self.patients, burden=burden))


def main(argv: Sequence[str] | None = None) -> int:
    """Load the cases and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=parse_location, nargs="+")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cases", default="400,150", help="of the training split, at last")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--arms", action="store_true", help="compare the arms alone")
    args = parser.parse_args(argv)
    config = load_config(args.config, [])
    first, *others = map(open_store, args.stores)
    train = load_cases(cases_with_outcome(first.select(split="train")), first, config)
    evaluated = [load_cases(cases_with_outcome(first.select(split="val")), first, config)]
    evaluated += [
        load_cases(cases_with_outcome(each.cases)[args.skip :], each, config) for each in others
    ]
    if not args.arms:
        compare_scores(train, evaluated, config, args)
    if others:
        compare_arms(train, evaluated[1:], config, seeds=args.seeds)
    return 0


def compare_scores(
    train: StudyCases,
    evaluated: Sequence[StudyCases],
    config: Config,
    args: argparse.Namespace,
) -> None:
    """Print AUC and average precision of each way of fitting, and those of the regression."""
    sizes = [len(each.scalars) for each in evaluated]
    print("| P(active) by | " + " | ".join(f"AUC, {n} | AP, {n}" for n in sizes) + " |")
    print("|" + "---|" * (1 + 2 * len(evaluated)))
    tried = [
        (
            f"{'shares and numbers' if numbers else 'shares'}, {rows} rows a step",
            train,
            numbers,
            rows,
        )
        for numbers in (False, True)
        for rows in (config.finetune.batch_size, ROWS)
    ]
    for number in map(int, args.cases.split(",")):
        tried.append((f"{number} training cases", train.first(number), True, ROWS))
    for name, training_cases, numbers, rows in tried:
        limited = [each.limited(numbers=numbers) for each in (training_cases, *evaluated)]
        priors = [fit_prior(limited[0], config, seed, rows=rows) for seed in range(args.seeds)]
        print(
            table_row(
                f"prior, {name}",
                [[activity_probability(each, of) for of in limited[1:]] for each in priors],
                evaluated,
            ),
            flush=True,
        )
    model = fit_regression_baseline(train.scalars, train.arm, train.lesions, arms=len(config.arms))
    regression = [model.probability(each.scalars, each.arm) for each in evaluated]
    print(table_row("regression on image features", [regression], evaluated), flush=True)


def compare_arms(
    train: StudyCases, evaluated: Sequence[StudyCases], config: Config, *, seeds: int
) -> None:
    """Print by how much P(active) and the expected count from w000 miss the truth."""
    names = ("no offset", "offsets")
    errors: dict[str, list[Floats]] = {name: [] for name in names}
    for seed in range(seeds):
        prior = fit_prior(train, config, seed, rows=ROWS)
        offset = prior.arm_offset.clone()
        for shift, name in enumerate(names):
            prior.arm_offset.copy_(shift * offset)
            means = [arm_means(prior, of) for of in evaluated]
            errors[name].append(
                np.array([mean_errors(*each) for each in zip(means, evaluated, strict=True)])
            )
        if seed == 0:
            print_arms(means[-1][1], train, evaluated[-1], config)
    rates = arm_statistics(train.arm, train.lesions, arms=len(config.arms))
    of_training = np.stack([rates.activity, rates.mean_count])
    head = [f"P(active), {len(each.scalars)} | count" for each in evaluated]
    print("\n| mean absolute error over arms of | " + " | ".join(head) + " |")
    print("|" + "---|" * (1 + 2 * len(evaluated)))
    for name in names:
        values = np.array(errors[name])
        stack = np.stack([values.mean(0), values.min(0), values.max(0)], axis=-1).reshape(-1, 3)
        cells = (f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in stack)
        print(f"| prior, {name} | " + " | ".join(cells) + " |")
    cells = (f"{error:.3f}" for of in evaluated for error in mean_errors(of_training, of))
    print("| training means of the arms | " + " | ".join(cells) + " |", flush=True)


def print_arms(expected: Floats, train: StudyCases, of: StudyCases, config: Config) -> None:
    """Print true and `expected` [arm] mean counts, with standard errors of what they rest on."""
    true = of.true_lesions.mean(0)
    print(
        "\n| mean count | true | standard error | expected | off by "
        "| training mean | standard error |"
    )
    print("|---|---|---|---|---|---|---|")
    for arm, name in enumerate(config.arms):
        own = train.lesions[train.arm == arm]
        print(
            f"| {name} | {true[arm]:.2f} | {standard_error(of.true_lesions[:, arm]):.2f} "
            f"| {expected[arm]:.2f} | {expected[arm] / true[arm] - 1:+.0%} "
            f"| {own.mean():.2f} | {standard_error(own):.2f} |"
        )


def standard_error(values: Floats) -> float:
    """Return the standard error of the mean of `values` [n]."""
    return float(values.std() / np.sqrt(len(values)))


def mean_errors(means: Floats, of: StudyCases) -> Floats:
    """Return the mean over arms of the absolute errors of the `means` [outcome, arm], [outcome]."""
    true = np.stack([(of.true_lesions > 0).mean(0), of.true_lesions.mean(0)])
    return np.asarray(np.abs(means - true).mean(1))


@torch.no_grad()
def arm_means(prior: LesionLoadPrior, of: StudyCases) -> Floats:
    """Return mean P(active) and mean count under every arm from the images of w000, [2, arm]."""
    patient = features_of_pattern(prior, of.patients, BASELINE_ALONE)
    cases = len(patient)
    expected = [
        prior.expectations(patient, torch.full((cases,), arm)) for arm in range(prior.arms - 1)
    ]
    return np.array(
        [[float(each.p_active.mean()), float(each.lesions.mean())] for each in expected]
    ).T


def load_cases(cases: Sequence[Case], store: Store, config: Config) -> StudyCases:
    """Read the cases from the store."""
    scalars = [image_features(store.read(case.index), store.spec.spacing) for case in cases]
    bids, arms = Path(store.table.bids), store.spec.arms
    masks = (counterfactual_net2(bids, case.subject, case.grid, arms=arms) for case in cases)
    return StudyCases(
        load_prior_data(cases, store, config.model).data,
        np.array(scalars),
        np.array([[components(one)[1] for one in mask] for mask in masks], np.float64),
    )


def fit_prior(
    training_cases: StudyCases, config: Config, seed: int, *, rows: int
) -> LesionLoadPrior:
    """Fit the prior of the configuration's networks."""
    torch.manual_seed(seed)
    control = replace(config.model.control, flair_reader_spacing=None)
    prior = build_lesion_load_prior(control, config.model.unet, ())
    assert prior is not None
    fit_lesion_load_prior(
        prior,
        training_cases.patients,
        PriorDropout(config.finetune.dropout_rates),
        seed=seed,
        rows=rows,
    )
    return prior


@torch.no_grad()
def activity_probability(prior: LesionLoadPrior, of: StudyCases) -> Floats:
    """Return P(active) [n]."""
    patient = of.patients.patient_features(prior)
    chance: Floats = 1 - prior(patient, of.patients.arm).double().softmax(1)[:, 0].numpy()
    return chance


def table_row(name: str, runs: Sequence[Sequence[Floats]], evaluated: Sequence[StudyCases]) -> str:
    """Return AUC and average precision of P(active) on each store: means over the runs, with their
    range if there are several."""
    cells = []
    for index, of in enumerate(evaluated):
        for score in (roc_auc_score, average_precision_score):
            scores = np.array([score(of.lesions > 0, run[index]) for run in runs])
            spread = f" ({scores.min():.3f} to {scores.max():.3f})" if len(runs) > 1 else ""
            cells.append(f"{scores.mean():.3f}{spread}")
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
