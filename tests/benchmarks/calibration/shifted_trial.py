"""Measure how count intervals hold on fresh cases, and on a shifted trial before and after
`lesioncast calibrate`.

    PYTHONPATH=.:platform python tests/benchmarks/calibration/shifted_trial.py \
        --bundle out/demo/bundle

Simulate two trials. The patients of `fresh` are like those that the bundle was trained on, and 1000
are scored. Those of `shifted` received three of the arms alone, with another scanner and with more
new lesions than in the bundle's trial; 200 calibrate and 300 are scored. All is in closed form and
in this process. Print coverage and width of the intervals, and P(active)
before and after recalibration: pooled, by arm, and by pattern of images. Intervals are 95 %, by
bootstrap over cases.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.bundle.bundle import BundlePrior, load_bundle_prior
from lesioncast.calibration.conformal import prediction_intervals
from lesioncast.config import Config, load_config
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean
from lesioncast.jobs import calibrate
from lesioncast.jobs.command.runner import configure_logging
from lesioncast.markdown import format_estimate
from lesioncast.simulation import disease, flair
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from lesioncast.training.lesion_load_prior.bundle_calibration import (
    PatternForecasts,
    calibration_cases,
    forecasts_by_pattern,
)
from lesioncast.training.lesion_load_prior.data import load_prior_data
from storage import open_store
from storage.convert.build_shard import build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from tests.benchmarks.studies.trials import CONFIG

BOOTSTRAP = Bootstrap(1000, 0)
ALL_IMAGES = "w000 and w048: all kinds of image"


@dataclass(frozen=True)
class StudyTrial:
    """A simulated trial of this study."""

    name: str
    seed: int
    #: Cases that calibrate, and cases that are scored.
    calibration: int
    scored: int
    shifted: bool

    def config(self) -> Config:
        """Return the configuration of the demo for this trial."""
        subjects = self.calibration + self.scored
        shares = [0.0, self.calibration / subjects, self.scored / subjects]
        overrides = [
            f"name={self.name}",
            f"simulation.seed={self.seed}",
            f"simulation.subjects={subjects}",
            f"store.split_fractions={shares}",
        ]
        return load_config(CONFIG, overrides)


FRESH = StudyTrial("fresh", seed=2201, calibration=0, scored=1000, shifted=False)
SHIFTED = StudyTrial("shifted", seed=2202, calibration=200, scored=300, shifted=True)
# Patients of three arms in one new trial, whose scanner has less contrast and more noise.
ENROLMENT = (("SITE", "avonex", 1), ("SITE", "interferon", 1), ("SITE", "fumarate", 1))
SCANNER = flair.ScannerContrast(grey=1.05, csf=0.45, noise=0.07, gain=150.0)
# How many times as many new lesions, and the odds of any, as in the bundle's trial.
MORE_LESIONS, ODDS = 2.0, 2.5


@contextmanager
def shifted_population() -> Iterator[None]:
    """Simulate patients of other arms, scanner and rates inside the block, in this process."""
    models = {
        arm: replace(
            model,
            mean_count=tuple(MORE_LESIONS * mean for mean in model.mean_count),
            activity=tuple(ODDS * p / (1 + (ODDS - 1) * p) for p in model.activity),
        )
        for arm, model in disease.ARM_MODELS.items()
    }
    with (
        patch.object(disease, "ENROLMENT", ENROLMENT),
        patch.dict(disease.ARM_MODELS, models),
        patch.dict(flair.CONTRASTS, {"SITE": SCANNER}),
    ):
        disease.count_cdf.cache_clear()
        yield
    disease.count_cdf.cache_clear()


def make_trial(trial: StudyTrial) -> Path:
    """Simulate and convert a trial; what is finished stays. Return its store."""
    config = trial.config()
    if missing := initialise_dataset(config.paths.bids, config.simulation):
        if trial.shifted:
            with shifted_population():
                write_subjects(config.paths.bids, config.simulation, missing)
                finalise_dataset(config.paths.bids, config.simulation)
        else:
            write_subjects(config.paths.bids, config.simulation, missing)
            finalise_dataset(config.paths.bids, config.simulation)
    plan = plan_conversion(
        config.paths.bids, config.paths.store, settings=config.store, arms=config.arms, seed=0
    )
    convert(plan, build=partial(map, build_shard))
    return config.paths.store


class ScoredCases(NamedTuple):
    """Forecasts of a trial's scored cases from each pattern of images, and names of the arms."""

    trial: str
    patterns: tuple[PatternForecasts, ...]
    arms: tuple[str, ...]


def scored_cases(name: str, store_path: Path, bundle: BundlePrior) -> ScoredCases:
    """Forecast the scored cases of a store in closed form."""
    store, model = open_store(store_path), bundle.config.model
    cases = calibration_cases(store, "test")
    loaded = load_prior_data(cases, store, model)
    return ScoredCases(name, tuple(forecasts_by_pattern(bundle.priors, loaded)), store.spec.arms)


def main(argv: Sequence[str] | None = None) -> int:
    """Make both trials, calibrate on the shifted one, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    args = parser.parse_args(argv)
    configure_logging()
    stores = {trial: make_trial(trial) for trial in (FRESH, SHIFTED)}
    output = SHIFTED.config().paths.bundle
    command = [str(args.bundle), str(stores[SHIFTED]), "--output", str(output)]
    if code := calibrate.main(command):
        raise SystemExit(f"calibrate failed with {code}; its log says why")
    before, after = (load_bundle_prior(path.absolute()) for path in (args.bundle, output))
    fresh, shifted = (scored_cases(one.name, stores[one], before) for one in stores)
    rows = ((fresh, before, "training"), (shifted, before, "training"), (shifted, after, "shifted"))
    head = "calibrated on | nominal | share that hold | mean width"
    print(f"\n| scored on | {head} |\n|---|---|---|---|---|")
    for cases, bundle, cohort in rows:
        print("\n".join(coverage_rows(cases, bundle, cohort)))
    print(
        "\n| scored on | calibrated on | active | mean P(active) | recalibrated | Brier score "
        "| recalibrated |\n|---|---|---|---|---|---|---|"
    )
    for cases, bundle, cohort in rows:
        print(activity_row(cases, bundle, cohort))
    print(f"\n| scored on | calibrated on | by | cases | 80 % | 90 % |\n{'|---' * 6}|")
    for cases, bundle, cohort in rows:
        print("\n".join(group_rows(cases, bundle, cohort)))
    return 0


def covered(forecasts: PatternForecasts, bundle: BundlePrior, level: float) -> tuple[Bools, Floats]:
    """Return whether each count is in its interval of a level, and the intervals' widths, [n]."""
    assert bundle.calibration is not None
    learned = bundle.calibration.of_pattern(forecasts.pattern)
    assert learned is not None
    quantile = next(one for one in learned.quantiles if one.level == level)
    low, high = prediction_intervals(forecasts.log_count, quantile.score)
    return (low <= forecasts.count) & (forecasts.count <= high), high - low


def all_images(cases: ScoredCases) -> PatternForecasts:
    """Return the forecasts from all images."""
    return next(one for one in cases.patterns if one.pattern == ALL_IMAGES)


def cell(values: Floats | Bools, digits: int = 3) -> str:
    """Return the mean with its interval."""
    weights = BOOTSTRAP.weights(len(values))
    return format_estimate(estimate_mean(values.astype(np.float64), weights), digits=digits)


def coverage_rows(cases: ScoredCases, bundle: BundlePrior, cohort: str) -> Iterator[str]:
    """Yield the pooled coverage from all images at both levels."""
    for level in (0.8, 0.9):
        inside, width = covered(all_images(cases), bundle, level)
        yield f"| {cases.trial} | {cohort} | {level:.0%} | {cell(inside)} | {cell(width, 2)} |"


def activity_row(cases: ScoredCases, bundle: BundlePrior, cohort: str) -> str:
    """Return mean P(active) and its Brier score, as stated and recalibrated, from all images."""
    forecasts = all_images(cases)
    assert bundle.calibration is not None
    learned = bundle.calibration.of_pattern(ALL_IMAGES)
    assert learned is not None
    assert learned.platt_scaling is not None
    active = forecasts.count > 0
    stated = 1 / (1 + np.exp(-forecasts.log_odds))
    recalibrated = learned.platt_scaling.probability(forecasts.log_odds)
    columns = (active, stated, recalibrated, (stated - active) ** 2, (recalibrated - active) ** 2)
    return f"| {cases.trial} | {cohort} | " + " | ".join(map(cell, columns)) + " |"


def group_rows(cases: ScoredCases, bundle: BundlePrior, cohort: str) -> Iterator[str]:
    """Yield the coverage by arm from all images, and of all arms by pattern of images."""
    start = f"| {cases.trial} | {cohort} |"
    forecasts = all_images(cases)
    inside = [covered(forecasts, bundle, level)[0] for level in (0.8, 0.9)]
    for index, arm in enumerate(cases.arms):
        rows = forecasts.arm == index
        if rows.any():
            shares = " | ".join(cell(one[rows]) for one in inside)
            yield f"{start} {arm} | {rows.sum()} | {shares} |"
    for one in cases.patterns:
        shares = " | ".join(cell(covered(one, bundle, level)[0]) for level in (0.8, 0.9))
        yield f"{start} {one.pattern} | {len(one.count)} | {shares} |"


if __name__ == "__main__":
    sys.exit(main())
