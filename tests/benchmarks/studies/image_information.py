"""Measure what a patient's images add to lesion location: nats per case, by noise level.

    PYTHONPATH=.:platform python tests/benchmarks/studies/image_information.py \
        --bundle out/demo/bundle --store STORE

The score is the cross entropy of the observed NET2 voxels in cases that have some, given a noised
copy of them: once with the patient's images and covariates, once without, as in stage 1. Networks
with a lesion load get the true one, so that only location counts. The arm is the one received. The
cases are those of the validation split, so that choosing by them uses no test case. A last table
shows the gain of a location map of the training cases that knows the distance to older lesions but
no noised copy.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.lesion_load import MIN_PROBABILITY, lesion_load_class
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import NET2, add_noise
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput
from lesioncast.imaging.channels import MASKS
from storage import Case, Store
from tests.benchmarks.sampling.one_step_predictions import BATCH, target_of_case
from tests.benchmarks.sampling.study_cli import load_study, study_parser

LOGSNR = (-4.0, -2.0, 0.0, 2.0)
RINGS = (0.0, 0.1, 3.1, 4.5, 6.5, 9, 12, 16, 22, 30)  # mm from older lesions
SMOOTH = (1.0, 1.5, 1.5)  # voxels, of the map
HEAD = "| logsnr | with the images | with none | they save |"

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]
Outcome = tuple[Mask, Mask]
"""New lesions at w096 and all of before, both [s, h, w]."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per noise level: means over the cases."""
    store, bundle, cases = load_study(
        study_parser(__doc__, cases=400, split="val").parse_args(argv)
    )
    own, none = nats(store, bundle, cases)
    print(HEAD, "|" + "---|" * 4, sep="\n")
    for level, logsnr in enumerate(LOGSNR):
        with_images, without = own[:, level], none[:, level]
        print(
            f"| {logsnr:g} | {with_images.mean():.2f} | {without.mean():.2f} "
            f"| {mean_and_error(without - with_images)} |"
        )
    train_cases = cases_with_outcome(store.select(split="train"))
    locations = estimate_locations(outcomes(store, train_cases), store.spec.spacing)
    print("", "| mm from older lesions | lesions, times the map's |", "|---|---|", sep="\n")
    for least, lift in zip(RINGS, locations.lift, strict=True):
        print(f"| {least:g} or more | {lift:.2f} |")
    saved = distance_gain(locations, outcomes(store, cases), store.spec.spacing)
    print(f"\nThat table saves {mean_and_error(saved)} over the map in {len(saved)} cases.")
    return 0


def nats(store: Store, bundle: Bundle, cases: Sequence[Case]) -> tuple[Floats, Floats]:
    """Return nats with and without images, each [n, level], of the n cases with lesions."""
    read = store_reader(store, bundle.config.model)
    own, none = [], []
    for first in range(0, len(cases), BATCH):
        batch = cases[first : first + BATCH]
        x = torch.from_numpy(np.stack([target_of_case(store, case.index) for case in batch]))
        rows = torch.nonzero((x[:, NET2] > 0).flatten(1).any(1)).flatten()
        if not len(rows):
            continue
        batch, x = [batch[row] for row in rows.tolist()], x[rows]
        arm = torch.tensor([case.arm_index for case in batch])
        inputs = zip(*(read(ModelInput(case.index))[:2] for case in batch), strict=True)
        condition, covariates = (torch.from_numpy(np.stack(arrays)) for arrays in inputs)
        own.append(negative_log_likelihood(bundle.model, x, arm, condition, covariates))
        none.append(
            negative_log_likelihood(bundle.model, x, arm, torch.zeros_like(condition), None)
        )
    return np.concatenate(own), np.concatenate(none)


def outcomes(store: Store, cases: Sequence[Case]) -> list[Outcome]:
    """Return the outcomes of the cases that have lesions at w096."""
    read = (store.read(case.index).masks.astype(bool) for case in cases)
    pairs = [(masks[-1, MASKS.index("net2")], masks[:-1].any((0, 1))) for masks in read]
    return [(new, old) for new, old in pairs if new.any()]


class LesionLocations(NamedTuple):
    """Lesion locations.

    `share` [s, h, w] is the share of lesions at each voxel. `lift` [ring] is the observed number
    relative to that share at each distance from older lesions.
    """

    share: Floats
    lift: Floats


def estimate_locations(training: Sequence[Outcome], spacing: Spacing) -> LesionLocations:
    """Estimate lesion locations from the training cases."""
    share = (
        gaussian_filter(np.sum([new for new, _ in training], axis=0, dtype=float), SMOOTH) + 1e-6
    )
    share /= share.sum()
    observed, expected = np.zeros((2, len(RINGS)))
    for new, old in training:
        at = distance_bins(old, spacing)
        observed += np.bincount(at[new], minlength=len(RINGS))
        expected += np.bincount(at.ravel(), (share * new.sum()).ravel(), minlength=len(RINGS))
    return LesionLocations(share, (observed + 1e-6) / (expected + 1e-6))


def distance_bins(old: Mask, spacing: Spacing) -> npt.NDArray[np.int64]:
    """Return each voxel's distance bin from older lesions; the last bin if there are none."""
    if not old.any():
        return np.full(old.shape, len(RINGS) - 1)
    return np.asarray(np.digitize(distance_transform_edt(~old, sampling=spacing), RINGS) - 1)


def distance_gain(
    locations: LesionLocations, evaluated: Sequence[Outcome], spacing: Spacing
) -> Floats:
    """Return the nats per case [n] that the distance to older lesions saves over the map."""
    saved = []
    for new, old in evaluated:
        density = locations.share * locations.lift[distance_bins(old, spacing)]
        saved.append(np.log(density[new] / density.sum() / locations.share[new]).sum())
    return np.array(saved)


def mean_and_error(values: Floats) -> str:
    """Format the mean of values [n] with its standard error."""
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


@torch.no_grad()
def negative_log_likelihood(
    model: LesionDiffusion, x: Tensor, arm: Tensor, condition: Tensor, covariates: Tensor | None
) -> Floats:
    """Return -log P of the NET2 voxels in x [n, 2, s, h, w], summed, per level [n, level]."""
    least = model.config.unet.lesion_load_thresholds
    load = lesion_load_class(x[:, NET2], least) if least else None
    denoise = model.denoiser(condition, arm, guidance=1.0, covariates=covariates, lesion_load=load)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    by_level = []
    for logsnr in LOGSNR:
        at = torch.full((len(x),), logsnr)
        chance = (denoise(add_noise(x, noise, at), at)[:, NET2] + 1) / 2
        right = torch.where(x[:, NET2] > 0, chance, 1 - chance).double().clamp(min=MIN_PROBABILITY)
        by_level.append(-right.log().flatten(1).sum(1))
    return torch.stack(by_level, dim=1).numpy()


if __name__ == "__main__":
    sys.exit(main())
