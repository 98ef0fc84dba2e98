"""Where randomness comes from: one generator for each (seed, subject, purpose)."""

from enum import IntEnum

import numpy as np

from lesioncast.simulation.settings import SimulationSettings


class RngStream(IntEnum):
    """Purposes draw from streams of their own, so that a change to one leaves the others alone."""

    ASSIGNMENT = 0
    PATIENT = 1
    ANATOMY = 2
    LESIONS = 3
    SCAN = 4


def subject_rng(
    settings: SimulationSettings, index: int, purpose: RngStream
) -> np.random.Generator:
    """The generator of subject `index` for `purpose`, the same in any order and any process."""
    return np.random.default_rng([settings.seed, index, int(purpose)])
