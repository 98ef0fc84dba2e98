"""Measure what clinical covariates add to a regression, on simulated patients without images.

    PYTHONPATH=.:platform python tests/benchmarks/studies/covariates.py --train 1216 --test 12000

Lesion counts up to week 48 replace the image features. Print the AUC of activity at week 96 without
the covariates, and the paired difference with them (95 % bootstrap over patients).
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.arrays import Floats
from lesioncast.diffusion.covariates import covariate_features
from lesioncast.evaluation.baselines.baselines import fit_regression_baseline
from lesioncast.evaluation.metrics.bootstrap import (
    ResampledScore,
    bootstrap_weights,
    estimate_difference,
    point_estimate,
)
from lesioncast.evaluation.metrics.scores import resampled_auc
from lesioncast.imaging.covariates import Covariate
from lesioncast.simulation.disease import Patient, draw_patient
from lesioncast.simulation.settings import SimulationSettings
from tests.benchmarks.studies.trials import study_seed

NUMBERS = ("age", "disease_duration", "edss", "relapses")
BOOTSTRAP = 500


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the patients and fit each regression with and without the covariates."""
    args = parse_study(__doc__, argv, train=1216, test=12000)
    patients = draw_patients(args)
    covariates = encode_covariates(patients, args.train)
    weights = bootstrap_weights(args.test, draws=BOOTSTRAP, seed=0)
    print(
        "| regression on | test cases | AUC without | covariates add |",
        "|---|---|---|---|",
        sep="\n",
    )
    for name, features in (
        ("arm and true lesion counts up to week 48", log_lesion_counts(patients)),
        ("arm alone", np.zeros((len(patients), 1))),
    ):
        without = auc_of(features, patients, train=args.train)
        added = auc_of(np.column_stack([features, covariates]), patients, train=args.train)
        gain = estimate_difference(added, without, weights)
        print(
            f"| {name} | {args.test} | {point_estimate(without, args.test):.3f} "
            f"| {gain.value:.3f} ({gain.low:.3f} to {gain.high:.3f}) |"
        )
    return 0


def parse_study(
    doc: str | None, argv: Sequence[str] | None, *, train: int, test: int
) -> argparse.Namespace:
    """Parse the numbers of patients and the seed. `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=train)
    parser.add_argument("--test", type=int, default=test)
    parser.add_argument("--seed", type=study_seed, default="77", help="of the patients")
    return parser.parse_args(argv)


def draw_patients(args: argparse.Namespace) -> list[Patient]:
    """Draw all patients, the training patients first."""
    settings = SimulationSettings(subjects=args.train + args.test, seed=args.seed)
    return [draw_patient(settings, index) for index in range(settings.subjects)]


def arm_index(patient: Patient) -> int:
    """Return the index of the patient's arm."""
    return PAPER_ARM_NAMES.index(patient.arm)


def log_lesion_counts(patients: Sequence[Patient]) -> Floats:
    """Return log(1 + n) of gadolinium and T2 lesions at w000 and of NET2 at w048, [n, 3]."""
    return np.log1p(
        [
            [patient.gad_count, patient.t2_count, patient.counts[0, arm_index(patient)]]
            for patient in patients
        ]
    )


def encode_covariates(patients: Sequence[Patient], train: int) -> Floats:
    """Encode covariates as for the networks, standardised on the first `train` patients."""
    rows = [patient.covariates() for patient in patients]
    kinds = [Covariate("sex", levels=("F", "M"))]
    for name in NUMBERS:
        values = [row[name] for row in rows[:train]]
        kinds.append(Covariate(name, float(np.mean(values)), float(np.std(values))))
    encoded = torch.tensor([[kind.encode(row[kind.name]) for kind in kinds] for row in rows])
    return covariate_features(encoded, kinds).numpy().astype(np.float64)


def auc_of(features: Floats, patients: Sequence[Patient], *, train: int) -> ResampledScore:
    """Return a function that resamples the AUC of activity at w096 of the test patients."""
    arm = np.array([arm_index(patient) for patient in patients])
    outcome = np.array([patient.counts[1, arm_index(patient)] for patient in patients], np.float64)
    model = fit_regression_baseline(
        features[:train], arm[:train], outcome[:train], arms=len(PAPER_ARM_NAMES)
    )
    chance = model.probability(features[train:], arm[train:])
    return lambda weights: resampled_auc(outcome[train:] > 0, chance, weights)


if __name__ == "__main__":
    sys.exit(main())
