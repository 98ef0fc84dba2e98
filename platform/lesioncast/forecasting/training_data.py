"""What a bundle records of the data and the length of its training, and what follows from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lesioncast.bundle.description import CASE_DIGITS, METRICS_FILE, BundleDescription
from lesioncast.errors import ForecastError
from lesioncast.forecasting.disclaimers import SIMULATED_SUBJECTS, TRAINED_ON_SIMULATED
from lesioncast.warning_list import CodedWarning, warn
from storage import Case, Store


def training_data_note(bundle: Path) -> str:
    """Return a sentence on the data that the bundle was trained on."""
    data = str(_training_metrics(bundle).get("data", "data not recorded"))
    return f"Trained on {data.rstrip('.')}."


def data_notes(bundle: BundleDescription, store: Store) -> tuple[str, ...]:
    """Return the notes on the data that the bundle was trained on and on the store's subjects."""
    trained_on = training_data_note(bundle.path)
    return (trained_on, SIMULATED_SUBJECTS) if store.table.trial.simulated else (trained_on,)


def simulated_bundle_warnings(bundle: BundleDescription, store: Store) -> tuple[CodedWarning, ...]:
    """Return a warning if a bundle of simulated patients is shown real ones."""
    if not bundle.config.simulated or store.table.trial.simulated:
        return ()
    return (warn("real_patient_simulated_bundle", TRAINED_ON_SIMULATED),)


def bundle_steps(bundle: Path) -> str:
    """Return the length of the bundle's training, such as "450 + 600 steps, seed 0"."""
    metrics = _training_metrics(bundle)
    counts = " + ".join(str(stage["step"]) for stage in metrics["stages"].values())
    seeds = [str(member["seed"]) for member in metrics.get("members", (metrics,))]
    return f"{counts} steps, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(seeds)}"


def check_unseen(bundle: BundleDescription, cases: Sequence[Case]) -> None:
    """Raise ForecastError if the bundle was trained on one of the cases, whatever store it is in.

    Cases are the same if all of their files are. Without this check, another seed or other split
    fractions of the store would put training cases into the test split unnoticed.
    """
    trained_on = set(_training_metrics(bundle.path).get("cases", ()))
    seen = [case.subject for case in cases if case.digest[:CASE_DIGITS] in trained_on]
    if seen:
        raise ForecastError(
            f"{bundle.path}: expected a bundle that was trained on none of the {len(cases)} cases, "
            f"got one that was trained on {len(seen)} of them, such as {seen[0]}; evaluate it with "
            "the seed and the store.split_fractions that it was trained with"
        )


def check_not_calibrated_on(bundle: BundleDescription, cases: Sequence[Case]) -> None:
    """Raise ForecastError if the calibration of the bundle was learned on one of the cases."""
    if bundle.calibration is None:
        return
    learned_on = set(bundle.calibration.cohort.case_digests)
    seen = [case.subject for case in cases if case.digest[:CASE_DIGITS] in learned_on]
    if seen:
        raise ForecastError(
            f"{bundle.path}: expected a bundle that was calibrated on none of the {len(cases)} "
            f"cases to score, got one that was calibrated on {len(seen)} of them, such as "
            f"{seen[0]}; calibrate it on another split"
        )


def _training_metrics(bundle: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((bundle / METRICS_FILE).read_text())
    return record
