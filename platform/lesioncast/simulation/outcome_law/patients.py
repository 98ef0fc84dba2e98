"""Draw the patients of a simulated trial again, from the settings that it was simulated with."""

import json
from collections.abc import Sequence
from pathlib import Path

from lesioncast.errors import ConfigError
from lesioncast.parsing import parse_dataclass
from lesioncast.simulation.bids import subject_index
from lesioncast.simulation.bids_metadata import fingerprint
from lesioncast.simulation.disease import Patient, draw_patient
from lesioncast.simulation.settings import SimulationSettings
from storage.text_files import read_text
from storage.trial.description import DESCRIPTION_FILE, SIMULATED_WITH


def simulation_settings(bids: Path) -> SimulationSettings | None:
    """Return the settings of the simulated trial in `bids`, as for one subject.

    Return None for other trials, and for one of another version of the simulation.
    """
    path = bids / DESCRIPTION_FILE
    stored = json.loads(read_text(path)).get(SIMULATED_WITH) if path.is_file() else None
    if not isinstance(stored, dict):
        return None
    values = {name: value for name, value in stored.items() if name != "generator"}
    try:
        settings = parse_dataclass(SimulationSettings, values | {"subjects": 1}, source=str(path))
    except ConfigError:
        return None
    return settings if fingerprint(settings) == stored else None


def redraw_patients(
    settings: SimulationSettings, arm_of_subject: Sequence[tuple[str, str]]
) -> list[Patient] | None:
    """Return the patients behind pairs of subject and received arm, of a trial with `settings`.

    Return None if a subject is not of such a trial, or received another arm in it.
    """
    patients = []
    for subject, arm in arm_of_subject:
        index = subject_index(subject)
        patient = None if index is None or index < 0 else draw_patient(settings, index)
        if patient is None or patient.arm != arm:
            return None
        patients.append(patient)
    return patients
