"""The simulated trial, subject by subject: from (settings, index) to images and potential outcomes.

`simulate_subject` is a pure function. Its noise is drawn once, whatever the arm, so `arm=` is an
intervention: same patient, same brain, same scans, another treatment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.errors import SimulationError
from lesioncast.simulation.anatomy import Anatomy, build_anatomy, target_grid
from lesioncast.simulation.disease import PERIODS, draw_patient
from lesioncast.simulation.flair import lesion_brightness, scan_sessions
from lesioncast.simulation.lesion_sites import Window
from lesioncast.simulation.lesions import Lesion, SimulatedLesions, place_lesions
from lesioncast.simulation.rng import RngStream, subject_rng
from lesioncast.simulation.settings import SimulationSettings

SESSIONS = ("w000", *PERIODS)
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SimulatedSubject:
    """A simulated subject; volumes are [s, h, w] in RAS+ order on the settings' grid."""

    index: int
    arm: str
    trial: str
    covariates: dict[str, Any]
    flair: npt.NDArray[np.float32]  # [session, s, h, w], raw intensities, 0 outside the brain
    t2: Mask  # [session, s, h, w]
    gad: Mask  # [session, s, h, w]
    parcellation: npt.NDArray[np.int16]  # FreeSurfer ids
    ranks: npt.NDArray[np.uint8]  # [period, s, h, w], periods w048 and w096
    counts: npt.NDArray[np.int64]  # [period, arm], arms as in PAPER_ARM_NAMES

    def net2(self, period: str, arm: str | None = None) -> Mask:
        """The true NET2 mask of `period` under `arm`, by default the assigned one."""
        p, a = PERIODS.index(period), PAPER_ARM_NAMES.index(arm or self.arm)
        mask: Mask = (self.ranks[p] > 0) & (self.ranks[p] <= self.counts[p, a])
        return mask


def simulate_subject(
    settings: SimulationSettings, index: int, *, arm: str | None = None
) -> SimulatedSubject:
    """Subject `index` of the trial; with `arm`, as it would have been under that arm.

    Raises SimulationError for an unknown arm, or a grid too small for the subject's lesions.
    """
    patient = draw_patient(settings, index)
    arm = arm or patient.arm
    if arm not in PAPER_ARM_NAMES:
        raise SimulationError(f"expected an arm out of {', '.join(PAPER_ARM_NAMES)}, got {arm}")
    field = target_grid(settings.shape, settings.spacing)
    anatomy = build_anatomy(
        settings, subject_rng(settings, index, RngStream.ANATOMY), atrophy=patient.atrophy
    )
    lesions = place_lesions(
        subject_rng(settings, index, RngStream.LESIONS), anatomy, field.axes, patient
    )
    counts = patient.counts[:, PAPER_ARM_NAMES.index(arm)]
    history = _history(lesions, counts, gad_count=patient.gad_count)
    scans = scan_sessions(
        subject_rng(settings, index, RngStream.SCAN),
        anatomy,
        field,
        history.brightness,
        patient.trial,
    )
    on_grid = partial(_place_box, shape=settings.shape, box=field.box)
    return SimulatedSubject(
        index=index,
        arm=arm,
        trial=patient.trial,
        covariates=patient.covariates(),
        flair=on_grid(scans),
        t2=on_grid([_label_map(anatomy, shown) > 0 for shown in history.t2]),
        gad=on_grid([_label_map(anatomy, shown) > 0 for shown in history.gad]),
        parcellation=on_grid([anatomy.labels])[0],
        ranks=on_grid([_label_map(anatomy, ranked) for ranked in lesions.new]),
        counts=patient.counts,
    )


@dataclass(frozen=True)
class _History:
    """Which lesions each session shows under one arm."""

    t2: tuple[tuple[Lesion, ...], ...]
    gad: tuple[tuple[Lesion, ...], ...]
    brightness: tuple[tuple[tuple[Lesion, float], ...], ...]  # FLAIR excess of each lesion


def _history(
    lesions: SimulatedLesions, counts: npt.NDArray[np.int64], *, gad_count: int
) -> _History:
    """Sessions w000, w048, w096 when periods bring their first `counts` lesions."""
    arrived = (lesions.baseline, *(new[:n] for new, n in zip(lesions.new, counts, strict=True)))
    enhancing = (
        lesions.baseline[:gad_count],
        *(tuple(lesion for lesion in new if lesion.enhances) for new in arrived[1:]),
    )
    t2, brightness = [], []
    for session in range(len(SESSIONS)):
        t2.append(tuple(chain.from_iterable(arrived[: session + 1])))
        brightness.append(
            tuple(
                (lesion, lesion_brightness(lesion, sessions=session - came, baseline=came == 0))
                for came in range(session + 1)
                for lesion in arrived[came]
            )
        )
    return _History(tuple(t2), enhancing, tuple(brightness))


def _label_map(anatomy: Anatomy, lesions: Iterable[Lesion]) -> npt.NDArray[np.uint8]:
    """Lesions numbered from 1 [s, h, w] of the box."""
    volume = np.zeros(anatomy.inside.shape, np.uint8)
    for rank, lesion in enumerate(lesions, 1):
        volume[lesion.window][lesion.mask] = rank
    return volume


def _place_box(
    volumes: Sequence[npt.NDArray[Any]], *, shape: tuple[int, int, int], box: Window
) -> npt.NDArray[Any]:
    """Volumes of the box [n][s, h, w] on the full grid [n, s, h, w], zero around it."""
    placed = np.zeros((len(volumes), *shape), volumes[0].dtype)
    for target, volume in zip(placed, volumes, strict=True):
        target[box] = volume
    return placed
