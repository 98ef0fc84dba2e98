"""Simulate one subject: from (settings, index) to images and potential outcomes.

`simulate_subject` is a pure function. Its random numbers do not depend on the arm, so `arm=` is an
intervention: the same patient, brain and scanner noise under another treatment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.arrays import Float32s, Ints, LabelMap, Mask
from lesioncast.errors import SimulationError
from lesioncast.simulation.anatomy import Anatomy, build_anatomy, target_grid
from lesioncast.simulation.disease import PERIODS, draw_patient
from lesioncast.simulation.early_signs import early_signs
from lesioncast.simulation.flair import (
    CONTRASTS,
    FlairExcess,
    ScannerContrast,
    lesion_excess,
    scan_sessions,
)
from lesioncast.simulation.lesions.placement import SimulatedLesions, place_lesions
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.lesions.sites import Window
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings

SESSIONS = ("w000", *PERIODS)


@dataclass(frozen=True)
class SimulatedSubject:
    """Images and potential outcomes of one subject, in RAS+ order on the settings' grid."""

    index: int
    arm: str
    trial: str
    covariates: dict[str, Any]
    #: Raw intensities [session, s, h, w]; 0 outside the brain.
    flair: Float32s
    #: T2 lesion masks [session, s, h, w].
    t2: Mask
    #: Masks of enhancing lesions [session, s, h, w].
    gad: Mask
    #: FreeSurfer ids [s, h, w].
    parcellation: LabelMap
    #: Ranks of the possible new lesions, from 1, [period, s, h, w]; periods w048 and w096.
    ranks: npt.NDArray[np.uint8]
    #: Number of new lesions under each arm, [period, arm], arms as in `PAPER_ARM_NAMES`.
    counts: Ints

    def net2(self, period: str, arm: str | None = None) -> Mask:
        """Return the true NET2 mask of `period` under `arm`, by default the assigned arm."""
        p, a = PERIODS.index(period), PAPER_ARM_NAMES.index(arm or self.arm)
        mask: Mask = (self.ranks[p] > 0) & (self.ranks[p] <= self.counts[p, a])
        return mask


def simulate_subject(
    settings: SimulationSettings,
    index: int,
    *,
    arm: str | None = None,
    contrast: ScannerContrast | None = None,
) -> SimulatedSubject:
    """Simulate subject `index` of the trial under its assigned arm, or under `arm` if given.

    With `contrast` the patient is scanned by scanners of that contrast, not by those of the trial.
    Raises SimulationError for an unknown arm and PlacementError, a SimulationError, if the grid is
    too small for the subject's lesions.
    """
    patient = draw_patient(settings, index)
    arm = arm or patient.arm
    if arm not in PAPER_ARM_NAMES:
        raise SimulationError(f"expected an arm out of {', '.join(PAPER_ARM_NAMES)}, got {arm}")
    grid = target_grid(settings.shape, settings.spacing)
    anatomy = build_anatomy(
        settings, subject_rng(settings, index, RngStream.ANATOMY), atrophy=patient.atrophy
    )
    lesions = place_lesions(settings, patient, anatomy)
    counts = patient.counts[:, PAPER_ARM_NAMES.index(arm)]
    history = _history(lesions, counts, gad_count=patient.gad_count)
    scans = scan_sessions(
        subject_rng(settings, index, RngStream.SCAN),
        anatomy,
        grid,
        history.excess,
        contrast or CONTRASTS[patient.trial],
    )
    on_grid = partial(_place_box, shape=settings.shape, box=grid.box)
    return SimulatedSubject(
        index=index,
        arm=arm,
        trial=patient.trial,
        covariates=patient.covariates(),
        flair=on_grid(scans),
        t2=on_grid([_label_map(anatomy, visible) > 0 for visible in history.t2]),
        gad=on_grid([_label_map(anatomy, visible) > 0 for visible in history.gad]),
        parcellation=on_grid([anatomy.labels])[0],
        ranks=on_grid([_label_map(anatomy, ranked) for ranked in lesions.new]),
        counts=patient.counts,
    )


@dataclass(frozen=True)
class _History:
    """Lesions that each session shows under one arm."""

    #: T2 lesions of each session.
    t2: tuple[tuple[Lesion, ...], ...]
    #: Enhancing lesions of each session.
    gad: tuple[tuple[Lesion, ...], ...]
    #: FLAIR excess of each session: lesions, and early signs of the next period.
    excess: tuple[tuple[FlairExcess, ...], ...]


def _history(lesions: SimulatedLesions, counts: Ints, *, gad_count: int) -> _History:
    """Return the lesions of w000, w048 and w096 if each period adds its first `counts` lesions."""
    # New lesions by the first session that shows them.
    new_lesions = (lesions.baseline, *(new[:n] for new, n in zip(lesions.new, counts, strict=True)))
    enhancing = (
        lesions.baseline[:gad_count],
        *(tuple(lesion for lesion in new if lesion.enhances) for new in new_lesions[1:]),
    )
    t2, excess = [], []
    for session in range(len(SESSIONS)):
        t2.append(tuple(chain.from_iterable(new_lesions[: session + 1])))
        shown = (
            lesion_excess(lesion, sessions=session - first, baseline=first == 0)
            for first in range(session + 1)
            for lesion in new_lesions[first]
        )
        excess.append((*shown, *_signs_at(lesions, counts, session)))
    return _History(tuple(t2), enhancing, tuple(excess))


def _signs_at(lesions: SimulatedLesions, counts: Ints, session: int) -> list[FlairExcess]:
    """Return the early signs at a session of the period that it begins; none at the last one."""
    if session == len(PERIODS):
        return []
    visible = [True] * len(lesions.baseline)
    for new, count in zip(lesions.new[:session], counts, strict=False):
        visible += [rank <= count for rank in range(1, len(new) + 1)]
    return early_signs(lesions.starts[session], visible)


def _label_map(anatomy: Anatomy, lesions: Iterable[Lesion]) -> npt.NDArray[np.uint8]:
    """Return a map of the box, [s, h, w], in which each lesion has its number from 1; else 0."""
    volume = np.zeros(anatomy.inside.shape, np.uint8)
    for rank, lesion in enumerate(lesions, 1):
        volume[lesion.window][lesion.mask] = rank
    return volume


def _place_box(
    volumes: Sequence[npt.NDArray[Any]], *, shape: tuple[int, int, int], box: Window
) -> npt.NDArray[Any]:
    """Place volumes of the box, [n][s, h, w], on the full grid, [n, s, h, w]; 0 outside the box."""
    placed = np.zeros((len(volumes), *shape), volumes[0].dtype)
    for target, volume in zip(placed, volumes, strict=True):
        target[box] = volume
    return placed
