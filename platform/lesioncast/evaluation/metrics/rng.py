"""Streams of random numbers of an evaluation."""

from enum import IntEnum


class RngStream(IntEnum):
    """Number that is mixed into the seed, so that two uses of one seed are uncorrelated."""

    BOOTSTRAP = 101
    MONTE_CARLO_BASELINE = 102
    LEAKAGE_PROBE = 103
    PERMUTED_INPUTS = 107
    ATTRITION_TEST = 108
    CLIMATOLOGY = 120
    MASK_DRAWS = 121
