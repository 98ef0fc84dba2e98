"""Job `calibrate`: learn a bundle's calibration on other labelled cases, without training."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lesioncast.bundle.bundle import BundlePrior, load_bundle_prior, save_same_weights
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.bundle.description import METRICS_FILE
from lesioncast.bundle.evaluation_card import (
    CARD,
    read_evaluation_card,
    write_evaluation_card,
)
from lesioncast.bundle.json_files import read_json
from lesioncast.bundle.typicality import read_typicality, write_typicality
from lesioncast.errors import BundleError, ConfigError, ForecastError
from lesioncast.forecasting.runtime import one_thread
from lesioncast.forecasting.training_data import check_unseen
from lesioncast.imaging.typicality import MIN_RANKED, TypicalityReference
from lesioncast.jobs.command.arguments import CALIBRATE
from lesioncast.jobs.command.runner import run_command
from lesioncast.training.data.typicality import fit_typicality
from lesioncast.training.lesion_load_prior.bundle_calibration import (
    calibrate_on_split,
    calibration_cases,
)
from storage import Case, Store, open_store
from storage.atomic import atomic_write_text
from storage.text_files import read_text

logger = logging.getLogger(__name__)

ALL = "all"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(CALIBRATE, calibrate, argv)


def calibrate(args: argparse.Namespace) -> None:
    """Write a bundle with the weights of --bundle, calibrated on cases of the store."""
    path, output = args.bundle.absolute(), args.output.absolute()
    if output.resolve() == path.resolve():
        raise ConfigError(
            f"--output: expected another folder than that of the bundle, got {output}; a new "
            "calibration makes a new bundle"
        )
    store, parent = open_store(args.store), load_bundle_prior(path)
    split = None if args.split == ALL else args.split
    cases = check_cases(parent, store, split)
    with one_thread():
        calibration = calibrate_on_split(
            parent.priors, store, parent.config.model, split=split, parent=parent.digest
        )
    digest = save_same_weights(
        output,
        parent,
        config=parent.config,
        metrics=read_json(path / METRICS_FILE),
        calibration=calibration,
    )
    reference = typicality_of(parent, store, cases)
    if reference is not None:
        write_typicality(output, digest, reference)
    carry_evaluation(parent, output, digest)
    logger.info("bundle %s (%s), calibrated from %s", output, digest[:12], parent.digest[:12])


def check_cases(parent: BundlePrior, store: Store, split: str | None) -> list[Case]:
    """Return the cases of a split. Raise an error if they cannot calibrate the bundle."""
    if not parent.priors:
        raise BundleError(
            f"{parent.path}: expected a bundle with a prognostic prior, got one that only samples; "
            "train with lesion_load_thresholds, which `priors: load` or `both` sets"
        )
    check_compatible(parent, store)
    cases = calibration_cases(store, split)
    if not cases:
        raise ForecastError(
            f"{store.path}: expected cases with an arm and NET2 at outcome in split "
            f"{split or ALL}, got none; choose another --split"
        )
    check_unseen(parent, cases)
    return cases


def typicality_of(
    parent: BundlePrior, store: Store, cases: Sequence[Case]
) -> TypicalityReference | None:
    """Return the reference by which the new bundle judges patients; None if it has none.

    It is that of the cases where they are enough for a p-value below 0.01, else the parent's.
    """
    reference = fit_typicality(store, cases)
    if len(reference.ranked) >= MIN_RANKED:
        return reference
    logger.warning(
        "%d cases are too few to judge how typical a patient is: the reference of %s stays",
        len(cases),
        parent.path,
    )
    return read_typicality(parent.path, parent.digest)


def carry_evaluation(parent: BundlePrior, output: Path, digest: str) -> None:
    """Copy the evaluation beside the parent to the new bundle, which has the same weights.

    Its warnings are about the trial that the weights were learned from, and P(active) before
    recalibration, so they hold for the new bundle, too.
    """
    card = read_evaluation_card(parent.path, parent.digest)
    if card is None:
        return
    write_evaluation_card(output, replace(card, bundle=digest))
    if not (parent.path / CARD).is_file():
        return
    origin = (
        f"This bundle has the weights of bundle `{parent.digest[:12]}`, with another calibration.\n"
        "What follows is the evaluation of that bundle.\n\n"
    )
    atomic_write_text(output / CARD, origin + read_text(parent.path / CARD))
