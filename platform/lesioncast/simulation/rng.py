"""Random generators of the simulation: one for each (seed, subject, purpose)."""

from enum import IntEnum

import numpy as np

from lesioncast.simulation.settings import SimulationSettings


class RngStream(IntEnum):
    """Purpose of a random stream; changing the draws of one purpose does not change the others."""

    ASSIGNMENT = 0
    PATIENT = 1
    ANATOMY = 2
    LESIONS = 3
    SCAN = 4
    PROPENSITY = 5
    PRONE_PLACES = 6
    ACTIVITY = 7


def subject_rng(
    settings: SimulationSettings, index: int, purpose: RngStream
) -> np.random.Generator:
    """Return the generator of subject `index` for `purpose`; it is the same in every process."""
    return np.random.default_rng([settings.seed, index, int(purpose)])
