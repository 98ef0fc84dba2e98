"""Compare lesion-load priors fitted to different features and batch sizes with regressions.

    PYTHONPATH=.:platform python tests/benchmarks/studies/lesion_load_prior.py \
        out/demo/store.zarr out/validation/store.zarr

Fit the prior to the first store's training cases in several ways with every seed. Score P(active)
at w096 on its validation cases and on all cases of the other stores, such as that of the trial
`validation` (`trials.py`): means over the seeds with their range. No test case is used. Last, fit
it to fewer training cases. A second table compares P(active) under every arm, from the images of
w000, with the truth of the other stores' simulated trials, without offsets of the arms and with
them; `--arms` makes this table alone. No images are sampled and no other network is needed.
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
from lesioncast.priors.input_patterns import pattern_number
from lesioncast.simulation.ground_truth import counterfactual_net2
from lesioncast.training.lesion_load_prior.calibration import features_of_pattern
from lesioncast.training.lesion_load_prior.data import PriorTrainingData, load_prior_data
from lesioncast.training.lesion_load_prior.dropout import PriorDropout
from lesioncast.training.lesion_load_prior.fit import ROWS, fit_lesion_load_prior
from storage import Case, Store, open_store, parse_location

NUMBER = 2  # place among the numbers of a channel
BASELINE_ALONE = pattern_number(later=False, kind="gad")
ALL_IMAGES = pattern_number(later=True, kind="gad")


class StudyCases(NamedTuple):
    """Cases of a store as input of the prior and of a regression [n, feature].

    `truly_active` [n, arm] says who would have had a lesion under each arm of a simulated trial.
    """

    patients: PriorTrainingData
    scalars: Floats
    truly_active: Floats

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
            PriorTrainingData(*parts), self.scalars[:number], self.truly_active[:number]
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
    parser.add_argument("--arms", action="store_true", help="compare the arms alone")
    args = parser.parse_args(argv)
    config = load_config(args.config, [])
    first, *others = map(open_store, args.stores)
    train = load_cases(cases_with_outcome(first.select(split="train")), first, config)
    evaluated = [load_cases(cases_with_outcome(first.select(split="val")), first, config)]
    evaluated += [load_cases(cases_with_outcome(each.cases), each, config) for each in others]
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
    """Print by how much P(active) from w000 misses the truth, mean of the arms, and AUCs."""
    names = (
        "prior without offsets",
        "one offset an arm, of the cases with all images",
        "one offset an arm and pattern of images",
    )
    errors: dict[str, list[list[float]]] = {name: [] for name in names}
    aucs: dict[str, list[list[float]]] = {name: [] for name in names}
    for seed in range(seeds):
        prior = fit_prior(train, config, seed, rows=ROWS)
        fitted = prior.arm_offset.clone()
        same = fitted[ALL_IMAGES].expand(len(fitted), -1)
        for name, offset in zip(names, (torch.zeros_like(fitted), same, fitted), strict=True):
            prior.arm_offset.copy_(offset)
            errors[name].append([arm_error(arm_probabilities(prior, of), of) for of in evaluated])
            aucs[name].append(
                [roc_auc_score(of.lesions > 0, activity_probability(prior, of)) for of in evaluated]
            )
        print(f"offsets of seed {seed}, from w000: {fitted[BASELINE_ALONE].numpy().round(2)}")
    sizes = [len(each.scalars) for each in evaluated]
    head = [f"mean error of the arms, {n} | AUC with all images, {n}" for n in sizes]
    print("\n| P(active) under every arm by | " + " | ".join(head) + " |")
    print("|" + "---|" * (1 + 2 * len(sizes)))
    for name in names:
        cells = []
        for index in range(len(evaluated)):
            for table in (errors, aucs):
                values = np.array([run[index] for run in table[name]])
                cells.append(f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    rates = arm_statistics(train.arm, train.lesions, arms=len(config.arms)).activity
    cells = [f"{arm_error(rates[None], of):.3f} | " for of in evaluated]
    print("| training rate of the arm | " + " | ".join(cells) + " |", flush=True)


def arm_error(probability: Floats, of: StudyCases) -> float:
    """Return the mean over arms of the absolute error of mean P(active) [n, arm]."""
    gaps = probability.mean(axis=0) - of.truly_active.mean(axis=0)
    return float(np.abs(gaps).mean())


@torch.no_grad()
def arm_probabilities(prior: LesionLoadPrior, of: StudyCases) -> Floats:
    """Return P(active) under every arm from the images of w000, [n, arm]."""
    patient = features_of_pattern(prior, of.patients, BASELINE_ALONE)
    return np.array([prior.expected_outcomes(row[None]).p_active.numpy() for row in patient])


def load_cases(cases: Sequence[Case], store: Store, config: Config) -> StudyCases:
    """Read the cases from the store."""
    scalars = [image_features(store.read(case.index), store.spec.spacing) for case in cases]
    bids, arms = Path(store.table.bids), store.spec.arms
    masks = (counterfactual_net2(bids, case.subject, case.grid, arms=arms) for case in cases)
    return StudyCases(
        load_prior_data(cases, store, config.model).data,
        np.array(scalars),
        np.array([mask.any(axis=(1, 2, 3)) for mask in masks], np.float64),
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
