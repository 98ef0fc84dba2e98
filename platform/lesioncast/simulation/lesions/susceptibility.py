"""Draw what makes places of one subject susceptible to lesions, apart from anatomy.

Nothing here depends on the treatment arm. Each part has a random stream of its own, so it leaves
all other draws of the subject as they are.
"""

from collections.abc import Sequence

import numpy as np

from lesioncast.arrays import Bools, Float32s
from lesioncast.simulation.anatomy import target_grid
from lesioncast.simulation.disease import PERIODS
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings

# Weights of the axes (s, h, w) and of the smooth field in a subject's regional propensity, and the
# distance in mm over which each axis passes from one side to the other.
_AXIS_WEIGHTS, _AXIS_MM = (0.4, 0.8, 0.6), (15.0, 30.0, 15.0)
_FIELD_WEIGHT = 0.7
# Values of a unit normal field between which proneness rises from 0 to 1: about a tenth of all
# voxels lie above their middle.
_PRONE = (1.1, 1.5)
# Probability that a lesion is active in a period, in general and if it enhances as that begins.
_ACTIVE, _ACTIVE_IF_ENHANCING = 0.2, 0.6


def regional_propensity(settings: SimulationSettings, index: int) -> Float32s | None:
    """Return the logarithm of the subject's own preference, [s, h, w] of the box.

    Return None if the settings have none. It is the same on every grid.
    """
    if not settings.regional_propensity:
        return None
    rng = subject_rng(settings, index, RngStream.PROPENSITY)
    grid = target_grid(settings.shape, settings.spacing)
    slopes = rng.standard_normal(3) * _AXIS_WEIGHTS
    field = np.float32(_FIELD_WEIGHT) * grid.region.sample(rng)
    s, h, w = np.ix_(
        *(
            (slope * np.tanh(axis / width)).astype(np.float32)
            for slope, axis, width in zip(slopes, grid.axes, _AXIS_MM, strict=True)
        )
    )
    propensity: Float32s = np.float32(settings.regional_propensity) * (s + h + w + field)
    return propensity


def prone_places(settings: SimulationSettings, index: int) -> tuple[Float32s | None, ...]:
    """Return how prone each voxel is in each period, from 0 to 1, [period][s, h, w] of the box.

    It is None for every period if the settings have no prone places.
    """
    if not settings.prone_places:
        return (None,) * len(PERIODS)
    rng = subject_rng(settings, index, RngStream.PRONE_PLACES)
    grid = target_grid(settings.shape, settings.spacing)
    fields = grid.prone.sample(rng, len(PERIODS))
    low, high = map(np.float32, _PRONE)
    return tuple(np.clip((fields - low) / (high - low), 0, 1))


def draw_active(
    rng: np.random.Generator, lesions: Sequence[Lesion], enhancing: Sequence[bool]
) -> Bools:
    """Draw which of n lesions are active in a period, [n]; active lesions tend to enlarge.

    `enhancing` says which take up gadolinium at the session that begins the period.
    """
    chance = np.where(np.asarray(enhancing, bool), _ACTIVE_IF_ENHANCING, _ACTIVE)
    return np.asarray(rng.random(len(lesions)) < chance)
