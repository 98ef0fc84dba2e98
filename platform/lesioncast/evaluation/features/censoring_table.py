"""Features of all cases with an arm, with and without an outcome, for censoring weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.evaluation.features.image_features import CaseMeasurements
from lesioncast.evaluation.features.outcomes import OutcomeTable, covariate_matrix
from lesioncast.imaging.covariates import Covariate
from storage import Case


@dataclass(frozen=True)
class CensoringTable:
    """Cases with an arm: first the test cases that are scored, last those without an outcome."""

    #: Image features and encoded covariates, all known before the outcome, [n, feature]; NaN where
    #: they are missing.
    features: Floats
    #: Index of the arm, [n].
    arm: Ints
    #: Whether the outcome was observed, [n].
    observed: Bools


def censoring_table(
    tables: Sequence[OutcomeTable],
    without_outcome: Sequence[Case],
    measured: Mapping[int, CaseMeasurements],
    covariates: Sequence[Covariate],
) -> CensoringTable:
    """Put the cases of `tables`, the test cases first, above those without an outcome.

    `measured` holds the measurements by the index of a case.
    """
    features = [_features(table.image_features, table.covariates) for table in tables]
    arms = [table.arm for table in tables]
    observed = sum(map(len, arms))
    if without_outcome:
        images = np.array([measured[case.index].image_features for case in without_outcome])
        encoded = covariate_matrix(covariates, without_outcome) if covariates else None
        features.append(_features(images, encoded))
        arms.append(np.array([case.arm_index for case in without_outcome], np.int64))
    arm = np.concatenate(arms)
    return CensoringTable(np.concatenate(features), arm, np.arange(len(arm)) < observed)


def _features(images: Floats, covariates: Floats | None) -> Floats:
    return images if covariates is None else np.column_stack([images, covariates])
