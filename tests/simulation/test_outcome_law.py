"""The exact law of a simulated subject: its density is that of lesions that the law redraws."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesioncast.simulation.bids import initialise_dataset, subject_index, subject_name
from lesioncast.simulation.lesions.placement import NEW_LESION_RADIUS, place_new_lesions
from lesioncast.simulation.outcome_law.patients import simulation_settings
from lesioncast.simulation.outcome_law.placement import mean_shape, placement_density
from lesioncast.simulation.outcome_law.redraw import LastPeriod, last_period
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import simulate_subject
from storage.trial.description import DESCRIPTION_FILE, SIMULATED_WITH
from tests.simulation.optional_parts import with_all_parts

SETTINGS = SimulationSettings(subjects=300, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=5)
ENLARGING = with_all_parts(SETTINGS)
ONLY_ENLARGING = replace(SETTINGS, enlarging_share=1.0)


@pytest.fixture(
    scope="module",
    params=[SETTINGS, ENLARGING, ONLY_ENLARGING],
    ids=["default", "all parts", "only enlarging"],
)
def periods(request: pytest.FixtureRequest) -> list[LastPeriod]:
    rebuilt = (last_period(request.param, index) for index in range(30))
    return [period for period in rebuilt if period.number][:6]


def test_a_rebuilt_subject_has_the_observed_new_lesions(periods: list[LastPeriod]) -> None:
    for period in periods[:3]:
        subject = simulate_subject(period.settings, period.patient.index)
        assert np.array_equal(period.outcome(), subject.net2("w096"))


def test_redrawn_lesions_fall_into_each_tenth_of_the_density_as_often(
    periods: list[LastPeriod],
) -> None:
    """Tenths of the density, from the least to the most likely voxels, each hold a tenth."""
    shares = []
    for period in periods:
        density = placement_density(period.start, number=1)
        assert density.sum() == pytest.approx(1)
        order = np.argsort(density, axis=None)
        tenth = np.minimum(np.cumsum(density.ravel()[order]) * 10, 9).astype(int)
        rng = np.random.default_rng(0)
        for _ in range(100):
            (lesion,) = place_new_lesions(rng, period.start, number=1)
            mask = np.zeros(density.shape)
            mask[lesion.window][lesion.mask] = 1
            assert (density[mask > 0] > 0).all()
            shares.append(np.bincount(tenth, weights=mask.ravel()[order], minlength=10))
    total = np.array(shares)
    share = total.sum(axis=0) / total.sum()
    error = total.std(axis=0) * np.sqrt(len(total)) / total.sum()
    assert (np.abs(share - 0.1) < 3.5 * error).all()
    assert error.max() < 0.02


def test_redrawn_counts_know_the_patient_and_a_seed_gives_one_mask() -> None:
    few = [last_period(SETTINGS, index) for index in range(16)]
    assert np.array_equal(few[0].redraw(3), few[0].redraw(3))
    redrawn = [[bool(period.redraw(seed).any()) for seed in range(6)] for period in few]
    active = np.mean(redrawn, axis=1)
    # Patients differ in what is known of them before the period.
    assert active.max() == 1
    assert active.min() == 0
    observed = np.array([period.number > 0 for period in few])
    assert active[observed].mean() > active[~observed].mean() + 0.2


def test_a_redrawn_lesion_avoids_older_ones(periods: list[LastPeriod]) -> None:
    for period in periods[:3]:
        older = simulate_subject(period.settings, period.patient.index).t2[1]
        for seed in range(4):
            assert not (period.redraw(seed) & older).any()
        assert period.density()[older].sum() == 0


def test_the_mean_shape_has_the_volume_of_new_lesions() -> None:
    shape = mean_shape((1.0, 1.0, 1.0), NEW_LESION_RADIUS)
    middle = tuple(size // 2 for size in shape.shape)
    assert shape[middle] == 1
    # Ellipsoids keep the volume of the sphere; radii are lognormal about 3.4 mm.
    expected = 4 / 3 * np.pi * 3.4**3 * np.exp(4.5 * 0.26**2)
    assert shape.sum() == pytest.approx(expected, rel=0.1)


def test_settings_are_read_back_from_a_trial_and_from_no_other(tmp_path: Path) -> None:
    initialise_dataset(tmp_path / "trial", SETTINGS)
    read = simulation_settings(tmp_path / "trial")
    assert read == SimulationSettings(
        subjects=1, shape=SETTINGS.shape, spacing=SETTINGS.spacing, seed=5
    )
    assert simulation_settings(tmp_path) is None
    path = tmp_path / "trial" / DESCRIPTION_FILE
    content = json.loads(path.read_text())
    content[SIMULATED_WITH]["generator"] = 0
    path.write_text(json.dumps(content))
    assert simulation_settings(tmp_path / "trial") is None
    assert subject_index(subject_name(41)) == 41
    assert subject_index("sub-A7") is None
