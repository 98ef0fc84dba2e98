"""Fit the reference by which a bundle judges how typical a patient is, to its training cases."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.imaging.features.patient_features import patient_features
from lesioncast.imaging.features.tissue_contrast import RawRange
from lesioncast.imaging.typicality import TypicalityReference, fit_gaussian
from storage import Case, Store

# One in so many cases fits the Gaussian, the others give the ranks. More ranks make p-values finer
# and the rate of alarms steadier; the covariance is shrunk and needs fewer.
FITTED_EVERY = 4
# A case takes 40 ms. With 1500 ranks the rate of alarms at 0.01 has a standard error of 0.0026.
MOST_CASES = 2000


def fit_typicality(store: Store, cases: Sequence[Case]) -> TypicalityReference:
    """Return the reference of these cases of a store, or of `MOST_CASES` of them.

    No feature is learned, so training cases are as good as others. The order of the digests, which
    is as good as random, decides which cases are taken, and which of them fit the Gaussian.
    """
    ordered = sorted(cases, key=lambda case: case.digest)[:MOST_CASES]
    with ThreadPoolExecutor() as threads:
        features = np.array(list(threads.map(partial(case_features, store), ordered)))
    arm = np.array([case.arm_index for case in ordered], np.int64)
    fitted = np.arange(len(ordered)) % FITTED_EVERY == 0
    gaussian = fit_gaussian(features[fitted], arm[fitted], arms=len(store.spec.arms))
    return TypicalityReference(gaussian, features[~fitted].astype(np.float32), arm[~fitted])


def case_features(store: Store, case: Case) -> Floats:
    """Return the features of a case, [feature]; see `patient_features`."""
    limits = {session: RawRange(*values) for session, values in case.intensity.items()}
    return patient_features(store.read(case.index), store.spec.spacing, limits)
