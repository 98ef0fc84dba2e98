"""Where randomness comes from: one generator for each (seed, subject, purpose)."""

from enum import IntEnum

import numpy as np

from lesioncast.simulation.settings import CohortSettings


class Stream(IntEnum):
    """Purposes draw from streams of their own, so that a change to one leaves the others alone."""

    ASSIGNMENT = 0
    PATIENT = 1
    ANATOMY = 2
    LESIONS = 3
    SCAN = 4


def stream(settings: CohortSettings, index: int, purpose: Stream) -> np.random.Generator:
    """The generator of subject `index` for `purpose`, the same in any order and any process."""
    return np.random.default_rng([settings.seed, index, int(purpose)])
