"""Patients of a simulated trial are drawn again from its description, or not at all."""

import json
from pathlib import Path

import pytest

from lesioncast.simulation.bids import initialise_dataset, subject_name
from lesioncast.simulation.disease import draw_patient
from lesioncast.simulation.outcome_law.patients import redraw_patients, simulation_settings
from lesioncast.simulation.settings import SimulationSettings
from storage.trial.description import DESCRIPTION_FILE, SIMULATED_WITH

SETTINGS = SimulationSettings(subjects=3, seed=8, predictability=0.5)


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """Return the folder of a trial with its description, before any subject is written."""
    initialise_dataset(tmp_path / "bids", SETTINGS)
    return tmp_path / "bids"


def test_the_same_patients_are_drawn_from_the_trials_description(trial: Path) -> None:
    drawn = [draw_patient(SETTINGS, index) for index in (2, 0)]
    named = [(subject_name(each.index), each.arm) for each in drawn]
    settings = simulation_settings(trial)
    assert settings is not None
    again = redraw_patients(settings, named)
    assert again is not None
    assert [each.counts.tolist() for each in again] == [each.counts.tolist() for each in drawn]
    assert [each.frailty for each in again] == [each.frailty for each in drawn]


@pytest.mark.parametrize("change", [{"generator": 0}, {"unknown": 1}, {"predictability": 7}])
def test_settings_of_another_version_are_not_known(trial: Path, change: dict[str, int]) -> None:
    path = trial / DESCRIPTION_FILE
    content = json.loads(path.read_text())
    content[SIMULATED_WITH] |= change
    path.write_text(json.dumps(content))
    assert simulation_settings(trial) is None


def test_a_trial_without_settings_is_not_known(tmp_path: Path) -> None:
    assert simulation_settings(tmp_path) is None


def test_subjects_of_another_trial_are_not_drawn() -> None:
    arm = draw_patient(SETTINGS, 0).arm
    other = "placebo" if arm != "placebo" else "fumarate"
    assert redraw_patients(SETTINGS, [("sub-0001", arm)]) is not None
    for subject, of_arm in (("sub-0001", other), ("sub-0000", arm), ("patient", arm)):
        assert redraw_patients(SETTINGS, [(subject, of_arm)]) is None
