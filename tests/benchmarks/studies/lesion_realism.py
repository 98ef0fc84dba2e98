"""Compare where T2 lesions lie, and how large they are, with masks of real patients.

    PYTHONPATH=.:platform python tests/benchmarks/studies/lesion_realism.py --masks FOLDER

FOLDER holds one `*.nii.gz` a patient: T2 lesions in the MNI space of 1 mm. Every third slice is
taken, so that voxels are 3 x 1 x 1 mm as in the simulation. Without a folder, the column of the
patients is what `simulation/lesions/measured.py` records of 30 patients. Density is that of lesion
voxels in white matter by distance to the lateral ventricles, relative to an even one. Volumes are
those of connected components of at least two voxels. Intervals are 95 %, by resampling patients.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.imaging.regions import WHITE_MATTER
from lesioncast.simulation.anatomy import build_anatomy
from lesioncast.simulation.disease import draw_patient
from lesioncast.simulation.lesions.measured import (
    VENTRICLE_BINS,
    VOLUME_QUARTILES,
    VOXEL_DENSITY,
)
from lesioncast.simulation.lesions.placement import Brain, place_baseline
from lesioncast.simulation.lesions.sites import FreeTissue
from lesioncast.simulation.lesions.susceptibility import regional_propensity
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.template import ORIGIN, template
from storage.layout import CONNECTIVITY_26

SETTINGS = SimulationSettings(
    subjects=1,
    shape=(60, 200, 180),
    spacing=(3.0, 1.0, 1.0),
    seed=2301,
    location_law="measured",
    lesion_sizes="measured",
    regional_propensity=0.6,
)
VOXEL_MM3 = 3.0
# Patients whose lesions are placed in the anatomy of one subject, to save its computation.
PATIENTS = 25

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LesionStatistics:
    """Lesions of one patient."""

    #: Lesion voxels in white matter by distance to the ventricles, [bin].
    voxels: Floats
    #: The same for all white matter, [bin].
    white: Floats
    #: Volumes of components of at least two voxels, in mm3.
    volumes: Floats


def lesion_statistics(lesions: Mask, near: Floats, white: Floats) -> LesionStatistics:
    """Measure the mask [s, h, w] of one patient.

    `near` is the distance to the ventricles in white matter, in mm, and NaN elsewhere. `white` is
    the histogram of `near`.
    """
    labels, count = ndimage.label(lesions, CONNECTIVITY_26)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    inside = near[lesions]
    return LesionStatistics(
        voxels=histogram(inside[~np.isnan(inside)]),
        white=white,
        volumes=sizes[sizes > 1] * VOXEL_MM3,
    )


def histogram(near: Floats) -> Floats:
    """Count distances to the ventricles, [bin]; the last bin is what lies beyond all others."""
    return np.histogram(near, (*VENTRICLE_BINS, np.inf))[0].astype(np.float64)


def real_patients(folder: Path) -> Iterator[LesionStatistics]:
    """Yield the statistics of every mask of a folder."""
    anatomy = template((1.0, 1.0, 1.0))
    in_white = np.isin(anatomy.labels, WHITE_MATTER)
    near = np.where(in_white, anatomy.ventricle_distance, np.nan)[1::3]
    white = histogram(near[~np.isnan(near)])
    for path in sorted(folder.glob("*.nii.gz")):
        image = nib.as_closest_canonical(nib.load(path))
        voxels = np.argwhere(np.asarray(image.dataobj) > 0)
        world = nib.affines.apply_affine(image.affine, voxels)[:, ::-1]  # z, y, x
        at = np.rint(world - ORIGIN).astype(int)
        at = at[((at >= 0) & (at < in_white.shape)).all(axis=1)]
        lesions = np.zeros(in_white.shape, bool)
        lesions[tuple(at.T)] = True
        yield lesion_statistics(lesions[1::3], near, white)


def simulated_patients(settings: SimulationSettings, subjects: int) -> Iterator[LesionStatistics]:
    """Yield the statistics of patients at w000: `PATIENTS` in the anatomy of each subject."""
    for index in range(subjects):
        owner = draw_patient(settings, index)
        rng = subject_rng(settings, index, RngStream.ANATOMY)
        anatomy = build_anatomy(settings, rng, atrophy=owner.atrophy)
        in_white = np.isin(anatomy.labels, WHITE_MATTER)
        near = np.where(in_white, anatomy.ventricle_distance, np.nan)
        white = histogram(near[~np.isnan(near)])
        brain = Brain(settings, owner, anatomy)
        sites = brain.sites(regional_propensity(settings, index), slab_only=False)
        for patient in range(PATIENTS):
            own = Brain(settings, draw_patient(settings, index * PATIENTS + patient), anatomy)
            rng = np.random.default_rng([settings.seed, index, patient])
            mask = np.zeros(near.shape, bool)
            for lesion in place_baseline(rng, own, FreeTissue(sites, own.spacing)):
                mask[lesion.window] |= lesion.mask
            yield lesion_statistics(mask, near, white)


def density(patients: Sequence[LesionStatistics]) -> Floats:
    """Return the density of lesion voxels relative to an even one, all patients pooled, [bin]."""
    voxels = np.sum([patient.voxels for patient in patients], axis=0)
    white = np.sum([patient.white for patient in patients], axis=0)
    return np.asarray((voxels / voxels.sum()) / (white / white.sum()))[:-1]


def quartiles(patients: Sequence[LesionStatistics]) -> Floats:
    """Return the quartiles of the volumes of lesions of all patients, in mm3."""
    volumes = np.concatenate([patient.volumes for patient in patients])
    return np.asarray(np.percentile(volumes, [25, 50, 75]))


@dataclass(frozen=True)
class Quantity:
    """Something that is measured on patients, with its value in real ones."""

    statistic: Callable[[Sequence[LesionStatistics]], Floats]
    rows: tuple[str, ...]
    recorded: tuple[float, ...]


QUANTITIES = (
    Quantity(
        density,
        tuple(f"{a:g} to {b:g} mm" for a, b in pairwise(VENTRICLE_BINS)),
        VOXEL_DENSITY,
    ),
    Quantity(quartiles, ("lower quartile", "median", "upper quartile"), VOLUME_QUARTILES),
)


def interval(patients: Sequence[LesionStatistics], quantity: Quantity) -> Floats:
    """Return the 95 % bootstrap interval of a quantity, [2, row]."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(patients), size=len(patients)) for _ in range(200))
    values = [quantity.statistic([patients[i] for i in chosen]) for chosen in draws]
    return np.asarray(np.percentile(values, [2.5, 97.5], axis=0))


def with_interval(patients: Sequence[LesionStatistics], quantity: Quantity) -> list[str]:
    """Return each value of a quantity with its interval."""
    return [
        f"{value:.3g} ({low:.3g} to {high:.3g})"
        for value, low, high in zip(
            quantity.statistic(patients), *interval(patients, quantity), strict=True
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of each quantity."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=Path, help="folder of masks of real patients")
    parser.add_argument("--subjects", type=int, default=40, help="simulated anatomies")
    args = parser.parse_args(argv)
    real = list(real_patients(args.masks)) if args.masks else []
    simulated = list(simulated_patients(SETTINGS, args.subjects))
    for quantity in QUANTITIES:
        print("\n| | recorded | these masks | simulated |", "|---|---|---|---|", sep="\n")
        masks = with_interval(real, quantity) if real else ["-"] * len(quantity.rows)
        columns = (quantity.rows, quantity.recorded, masks, with_interval(simulated, quantity))
        for row in zip(*columns, strict=True):
            print("|", " | ".join(map(str, row)), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
