"""T2 lesions lie where those of real patients lie, and are as large, at 3 x 1 x 1 mm.

The references are densities and volumes measured on patients (`lesions/measured.py`). One test
measures masks of real patients again: LESION_MASKS names their folder.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesioncast.simulation.lesions.measured import (
    VENTRICLE_BINS,
    VOLUME_QUARTILES,
    VOXEL_DENSITY,
)
from tests.benchmarks.studies.lesion_realism import (
    SETTINGS,
    LesionStatistics,
    density,
    main,
    quartiles,
    real_patients,
    simulated_patients,
)

FROM_2_TO_20_MM = slice(VENTRICLE_BINS.index(2.0), VENTRICLE_BINS.index(20.0))


def density_errors(patients: list[LesionStatistics]) -> np.ndarray:
    """Return the relative error of the density of each bin from 2 to 20 mm."""
    ratio = density(patients) / VOXEL_DENSITY
    return np.abs(ratio - 1)[FROM_2_TO_20_MM]


def volume_errors(patients: list[LesionStatistics]) -> np.ndarray:
    """Return the relative error of each quartile of the volumes of lesions."""
    return np.abs(quartiles(patients) / VOLUME_QUARTILES - 1)


@pytest.fixture(scope="module")
def simulated() -> list[LesionStatistics]:
    """Statistics of 600 simulated patients."""
    return list(simulated_patients(SETTINGS, 24))


@pytest.mark.slow
def test_lesions_have_the_measured_density_by_distance_to_the_ventricles(
    simulated: list[LesionStatistics],
) -> None:
    assert density_errors(simulated).max() < 0.15


@pytest.mark.slow
def test_lesions_have_the_measured_volumes(simulated: list[LesionStatistics]) -> None:
    assert volume_errors(simulated).max() < 0.25


def test_the_exponential_law_of_location_has_another_density() -> None:
    other = replace(SETTINGS, location_law="exponential")
    assert density_errors(list(simulated_patients(other, 3))).max() > 0.2


def test_lognormal_sizes_are_twice_the_measured_ones() -> None:
    other = replace(SETTINGS, lesion_sizes="lognormal")
    assert volume_errors(list(simulated_patients(other, 1))).min() > 1


@pytest.fixture
def masks() -> Path:
    """Folder of masks of real patients."""
    if "LESION_MASKS" not in os.environ:
        pytest.skip("LESION_MASKS is not set: no masks of real patients to measure")
    return Path(os.environ["LESION_MASKS"])


def test_the_recorded_density_and_volumes_are_those_of_real_masks(masks: Path) -> None:
    """The record is of 30 patients and the folder may hold some of them."""
    patients = list(real_patients(masks))
    assert len(patients) >= 20
    assert density_errors(patients).max() < 0.15
    assert volume_errors(patients).max() < 0.15


def test_the_study_prints_recorded_and_simulated_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--subjects", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| 2 to 3 mm | 4.8 | - |" in printed
    assert "| median | 27.0 | - |" in printed
