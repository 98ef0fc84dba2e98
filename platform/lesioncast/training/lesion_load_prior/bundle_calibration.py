"""Learn the calibration of a bundle on the cases of a split, from the prior's closed form.

Nothing is sampled. Each case is forecast from every pattern of images that it can be shown in, so
that a patient without gadolinium gets the interval that held for cases without gadolinium.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lesioncast.arrays import Floats, Ints
from lesioncast.bundle.calibration import (
    BundleCalibration,
    CalibrationCohort,
    PatternCalibration,
)
from lesioncast.bundle.description import CASE_DIGITS
from lesioncast.calibration.conformal import LogCountForecast
from lesioncast.calibration.fit import calibrate
from lesioncast.calibration.recalibration import finite_log_odds
from lesioncast.diffusion.lesion_load import LesionLoadPrior, mix_expectations
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.priors.input_patterns import PATTERNS, pattern_name
from lesioncast.training.lesion_load_prior.calibration import features_of_pattern
from lesioncast.training.lesion_load_prior.data import (
    LoadedCases,
    load_prior_data,
    with_readings,
)
from storage import Case, Store

logger = logging.getLogger(__name__)

CALIBRATION_SPLIT = "val"
SPLIT_NAMES = {"val": "validation", "train": "training", "test": "test"}


def calibration_cases(store: Store, split: str | None) -> list[Case]:
    """Return the cases of a split, or of all, whose arm and number of new lesions are known."""
    return [case for case in store.select(split=split) if case.arm is not None and case.has_outcome]


def calibrate_on_split(
    priors: Sequence[LesionLoadPrior],
    store: Store,
    model: ModelConfig,
    *,
    split: str | None,
    parent: str | None = None,
) -> BundleCalibration | None:
    """Return the calibration of the priors' forecasts on the cases of a split; None stands for all.

    `priors` are those of a bundle's members, which are mixed. The result is None without any, where
    forecasts are samples, and where no case of the split has an outcome. `parent` is the digest of
    the bundle that is calibrated again.
    """
    cases = calibration_cases(store, split)
    if not priors or not cases:
        return None
    loaded = load_prior_data(cases, store, model)
    patterns = tuple(one.calibrate() for one in forecasts_by_pattern(priors, loaded))
    calibration = BundleCalibration(cohort_of(store, cases, split), patterns, parent)
    logger.info("calibrated on %s", calibration.description)
    return calibration


def cohort_of(store: Store, cases: list[Case], split: str | None) -> CalibrationCohort:
    """Return what a calibration says of its cases."""
    trial = store.table.trial
    kind = f"{SPLIT_NAMES.get(split, split)} cases" if split else "cases"
    received = Counter(case.arm for case in cases)
    return CalibrationCohort(
        name=f"{len(cases)} {kind} of {trial.name or 'a trial without a name'}",
        arms={arm: received[arm] for arm in store.spec.arms if received[arm]},
        simulated=trial.simulated,
        store=store.table.inputs,
        case_digests=tuple(sorted(case.digest[:CASE_DIGITS] for case in cases)),
    )


@dataclass(frozen=True)
class PatternForecasts:
    """What the priors state of n cases from one pattern of images, and what happened."""

    pattern: str
    #: Index of the arm received, [n].
    arm: Ints
    #: Observed number of new lesions, [n].
    count: Floats
    log_count: LogCountForecast
    #: Log odds of P(active), [n].
    log_odds: Floats

    def calibrate(self) -> PatternCalibration:
        """Return the calibration that these cases teach, without levels that need more cases."""
        learned = calibrate(self.count, self.log_count, self.log_odds)
        finite = tuple(one for one in learned.quantiles if np.isfinite(one.score))
        return PatternCalibration(self.pattern, replace(learned, quantiles=finite))


@torch.no_grad()
def forecasts_by_pattern(
    priors: Sequence[LesionLoadPrior], loaded: LoadedCases
) -> Iterator[PatternForecasts]:
    """Yield the forecasts of the cases from each pattern of images that some can be shown in.

    They are those of the mixture of `priors`, each of which reads FLAIR for itself.
    """
    data = loaded.data
    read_by = [with_readings(prior, loaded) for prior in priors]
    for pattern in range(PATTERNS):
        patients = [
            features_of_pattern(prior, of_prior, pattern)
            for prior, of_prior in zip(priors, read_by, strict=True)
        ]
        rows = priors[0].pattern(patients[0]) == pattern
        if rows.any():
            by_member = [
                prior.probabilities(patient[rows], data.arm[rows])
                for prior, patient in zip(priors, patients, strict=True)
            ]
            expected = mix_expectations(priors, by_member)
            yield PatternForecasts(
                pattern_name(pattern),
                data.arm[rows].numpy(),
                data.lesions[rows].double().numpy(),
                LogCountForecast(expected.log_lesions.numpy(), expected.log_sd.numpy()),
                finite_log_odds(expected.p_active.numpy()),
            )
