"""Random number generators that are keyed on (purpose, seed, counters)."""

from enum import IntEnum

import numpy as np


class RngStream(IntEnum):
    """Purpose of a random number. Each purpose has its own stream."""

    ORDER = 0
    BALANCE = 1
    TIME = 2
    NOISE = 3
    DROPOUT = 4
    COVARIATE_DROPOUT = 5
    SESSION_DROPOUT = 6
    LESION_LOAD = 7
    INPUT_TYPES = 8


def rng_for(stream: RngStream, seed: int, *counters: int) -> np.random.Generator:
    """Return the generator of one purpose at (seed, counters), such as the step."""
    return np.random.default_rng((int(stream), seed, *counters))
