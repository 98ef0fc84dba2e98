"""Fit the tissue classifier to training cases that have FLAIR and a parcellation."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from lesioncast.arrays import evenly_spaced
from lesioncast.priors.spatial.features.flair import tissue_intensity
from lesioncast.priors.spatial.features.history import history_of
from lesioncast.priors.spatial.features.tissue import classes_of, one_hot
from lesioncast.priors.spatial.features.tissue_classifier import (
    LabelledVoxels,
    TissueClassifier,
    classifier_inputs,
    fit_tissue_classifier,
)
from lesioncast.priors.spatial.inputs import Labels, SpatialCase, SpatialInputs
from lesioncast.priors.spatial.support import brain_support

# Fewer cases than this give no classifier.
LEAST_CASES = 20
# Voxels of older lesions that are sampled beside those of the whole brain.
LESION_VOXELS = 60


def fit_tissue(
    cases: Sequence[SpatialCase], *, cases_used: int, voxels: int, seed: int
) -> TissueClassifier | None:
    """Fit the classifier to `voxels` voxels of each of at most `cases_used` cases.

    Returns None if fewer than LEAST_CASES have FLAIR and a parcellation.
    """
    with_flair = [case for case in cases if case.inputs.flairs()]
    labelled: list[tuple[SpatialInputs, Labels]] = [
        (case.inputs, classes_of(case.inputs.parcellation))
        for case in evenly_spaced(with_flair, cases_used)
        if case.inputs.parcellation is not None
    ]
    if len(labelled) < LEAST_CASES:
        return None
    shares = np.mean([one_hot(classes) for _, classes in labelled], axis=0)
    label_atlas = np.asarray((shares + shares[..., ::-1]) / 2, np.float32)

    def sample(number: int) -> LabelledVoxels:
        inputs, classes = labelled[number]
        rng = np.random.default_rng([seed, number, 1])
        # A patient is classified without the parcellation, so its brain is not used here either.
        s, h, w = classes.shape
        brain = brain_support(replace(inputs, parcellation=None), (s, h, w))
        inside = brain & (classes >= 0)
        history = history_of(inputs)
        older = np.zeros_like(inside) if history is None else history.older & inside
        at = rng.choice(np.flatnonzero(inside), voxels)
        if older.any():
            at = np.concatenate([at, rng.choice(np.flatnonzero(older), LESION_VOXELS)])
        image = tissue_intensity(inputs, brain).mean(axis=0)
        read = classifier_inputs(image, brain, label_atlas, inputs.spacing, at)
        lesion = older.ravel()[at].astype(np.float32)
        if history is None:
            lesion[:] = np.nan
        share = float(older.sum() / inside.sum())
        return LabelledVoxels(read, classes.ravel()[at].astype(np.int64), lesion, share)

    with ThreadPoolExecutor() as threads:
        sampled = list(threads.map(sample, range(len(labelled))))
    return fit_tissue_classifier(sampled, label_atlas, seed)
