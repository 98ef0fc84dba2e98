"""Tell sampled lesions from observed ones by a classifier that sees the patient's images.

A classifier two-sample test (Lopez-Paz and Oquab 2017): where lesions of samples are those of real
outcomes given the patient, no classifier tells the two apart, and its AUC is 0.5. Each lesion is
described by its size and shape, the tissue and the older lesions that it lies in or touches, FLAIR
in it, and the spatial prior. The classifier of a case is trained on other cases.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from lesioncast.arrays import Bools, Floats, Ints, Mask, Spacing
from lesioncast.evaluation.where.rings import older_lesions
from lesioncast.imaging.channels import BASELINE, CURRENT, SESSIONS
from lesioncast.imaging.lesions import components
from lesioncast.imaging.regions import CORTEX, CSF, DEEP_GREY, VENTRICLE, WHITE_MATTER
from storage import CaseArrays
from storage.layout import CONNECTIVITY_26

TISSUES = (WHITE_MATTER, CORTEX, VENTRICLE, DEEP_GREY, CSF)
FEATURES = (
    "volume", "surface", "length", "white", "cortex", "ventricle", "deep grey", "csf",
    "inside older", "distance to older", "contact with older", "distance to ventricle",
    "density", "lowest density", "flair", "flair gain", "distance to next", "lesions",
)  # fmt: skip
FOLDS = 5
NEAR_MM = 60.0  # distances beyond are as good as none
WITHOUT = 1e-9  # density of a voxel that the prior excludes


@dataclass(frozen=True)
class PatientVolumes:
    """What the lesions of a case are described by: volumes [feature, s, h, w] to be averaged."""

    older: Mask
    #: Shares of tissue, inside older lesions, distances in mm, log density, FLAIR and its gain.
    averaged: Floats
    log_density: Floats
    spacing: Spacing


def patient_volumes(arrays: CaseArrays, density: Floats, spacing: Spacing) -> PatientVolumes:
    """Return the volumes of a case; `density` [s, h, w] is that of the spatial prior."""
    older, labels = older_lesions(arrays), arrays.parcellation
    flair = [arrays.flair[SESSIONS.index(one)].astype(np.float64) for one in (BASELINE, CURRENT)]
    log_density = np.log(np.maximum(density * density.size, WITHOUT))
    averaged = [np.isin(labels, ids) for ids in TISSUES]
    averaged += [
        older,
        distance_to(older, spacing),
        distance_to(np.isin(labels, VENTRICLE), spacing),
    ]
    averaged += [log_density, flair[1], flair[1] - flair[0]]
    return PatientVolumes(older, np.array(averaged, np.float64), log_density, spacing)


def distance_to(mask: Mask, spacing: Spacing) -> Floats:
    """Return the distance of each voxel to a mask [s, h, w] in mm, at most NEAR_MM."""
    if not mask.any():
        return np.full(mask.shape, NEAR_MM)
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.minimum(np.asarray(distance, np.float64), NEAR_MM)


def lesion_features(mask: Mask, patient: PatientVolumes) -> Floats:
    """Return `FEATURES` of each lesion of a mask [s, h, w], [lesion, feature]."""
    labels, number = components(mask)
    rows = []
    beside_older = ndimage.binary_dilation(patient.older, CONNECTIVITY_26)
    middles = np.array(ndimage.center_of_mass(mask, labels, range(1, number + 1)))
    for label, window in enumerate(ndimage.find_objects(labels), 1):
        lesion = labels[window] == label
        mean = patient.averaged[(slice(None), *window)][:, lesion].mean(axis=1)
        tissue, (inside, to_older, to_ventricle, density, flair, gain) = (
            mean[: len(TISSUES)], mean[len(TISSUES) :],
        )  # fmt: skip
        size = np.count_nonzero(lesion)
        extent = np.array(lesion.shape) * patient.spacing
        others = np.delete(middles, label - 1, axis=0) - middles[label - 1]
        next_mm = np.linalg.norm(others * patient.spacing, axis=1).min(initial=NEAR_MM)
        rows.append(
            [
                math.log(size),
                surface(lesion) / size ** (2 / 3),
                extent.max(),
                *tissue,
                inside,
                to_older,
                np.count_nonzero(beside_older[window] & lesion) / size,
                to_ventricle,
                density,
                patient.log_density[window][lesion].min(),
                flair,
                gain,
                next_mm,
                number,
            ]  # fmt: skip
        )
    return np.array(rows, np.float64).reshape(-1, len(FEATURES))


def surface(lesion: Mask) -> int:
    """Return the number of voxel faces between a lesion [s, h, w] and what surrounds it."""
    padded = np.pad(lesion, 1).astype(np.int8)
    return int(sum(np.abs(np.diff(padded, axis=axis)).sum() for axis in range(padded.ndim)))


def classifier_auc(
    observed: Sequence[Floats], sampled: Sequence[Floats]
) -> Callable[[Floats], Floats]:
    """Return the AUC of a classifier of observed against sampled lesions as a resampled score.

    Both hold the features [lesion, feature] of each case.
    """
    features = np.concatenate([*observed, *sampled])
    case = np.concatenate([_cases(observed), _cases(sampled)])
    truth: Bools = np.arange(len(features)) < sum(map(len, observed))
    score = np.zeros(len(features))
    for train, test in GroupKFold(FOLDS).split(features, groups=case):
        model = HistGradientBoostingClassifier(
            max_depth=4, max_iter=120, learning_rate=0.06, class_weight="balanced", random_state=0
        ).fit(features[train], truth[train])
        score[test] = model.decision_function(features[test])

    def auc(weights: Floats) -> Floats:
        return np.array([roc_auc_score(truth, score, sample_weight=one[case]) for one in weights])

    return auc


def _cases(features: Sequence[Floats]) -> Ints:
    return np.repeat(np.arange(len(features)), [len(one) for one in features])
