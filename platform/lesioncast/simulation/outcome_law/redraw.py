"""Rebuild a simulated subject before its last period, and draw that period once more."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.arrays import Floats, Mask
from lesioncast.simulation.anatomy import build_anatomy, target_grid
from lesioncast.simulation.disease import Patient, draw_patient, redraw_count
from lesioncast.simulation.lesions.placement import (
    PeriodStart,
    SimulatedLesions,
    place_lesions,
    place_new_lesions,
)
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.lesions.sites import Window
from lesioncast.simulation.outcome_law.placement import placement_density
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class LastPeriod:
    """A simulated subject at the start of the last period, under the arm that it received.

    All volumes are [s, h, w] on the grid of the settings.
    """

    settings: SimulationSettings
    patient: Patient
    lesions: SimulatedLesions

    @property
    def start(self) -> PeriodStart:
        """Return what precedes the period, with every lesion placed, shown by the arm or not."""
        return self.lesions.starts[-1]

    @property
    def number(self) -> int:
        """Return the number of new lesions that the subject had."""
        return int(self.patient.counts[-1, PAPER_ARM_NAMES.index(self.patient.arm)])

    def outcome(self) -> Mask:
        """Return the new lesions that the subject had."""
        return self._mask(self.lesions.new[-1][: self.number])

    def density(self) -> Floats:
        """Return the density of new-lesion voxels given the number of lesions; the sum is 1."""
        number = max(self.number, 1)
        return self._on_grid(placement_density(self.start, number=number))

    def redraw(self, seed: int, *, number: int | None = None) -> Mask:
        """Draw the period once more: number and places of the lesions, given all before it.

        With a `number` of lesions only their places are drawn.
        """
        rng = np.random.default_rng([self.settings.seed, self.patient.index, seed])
        if number is None:
            number = redraw_count(self.settings, self.patient.index, self.patient.arm, rng)
        return self._mask(place_new_lesions(rng, self.start, number=number))

    def _mask(self, lesions: tuple[Lesion, ...]) -> Mask:
        mask = np.zeros(self.start.sites.white.shape, bool)
        for lesion in lesions:
            mask[lesion.window] |= lesion.mask
        return self._on_grid(mask)

    def _on_grid(self, volume: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        placed = np.zeros(self.settings.shape, volume.dtype)
        placed[self._box] = volume
        return placed

    @property
    def _box(self) -> Window:
        return target_grid(self.settings.shape, self.settings.spacing).box


def last_period(settings: SimulationSettings, index: int) -> LastPeriod:
    """Rebuild subject `index` of a simulated trial, without its images."""
    patient = draw_patient(settings, index)
    anatomy = build_anatomy(
        settings, subject_rng(settings, index, RngStream.ANATOMY), atrophy=patient.atrophy
    )
    return LastPeriod(settings, patient, place_lesions(settings, patient, anatomy))
