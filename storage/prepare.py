"""From one subject's files to the arrays of one case, checked on the way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.bids import ANATOMY, REFERENCE, UNKNOWN, Source, Subject
from storage.cases import Covariate
from storage.checks import (
    check_binary,
    check_field,
    check_image,
    check_labels,
    check_participant,
    check_same_grid,
    check_sessions,
)
from storage.grid import Grid, plan_grid, to_slab
from storage.layout import BACKGROUND, CHANNELS, MASKS, SESSIONS
from storage.nifti import Volume, read_volume
from storage.normalise import foreground_of, scale_flair
from storage.settings import StoreSettings


@dataclass(frozen=True)
class CaseArrays:
    """A case's voxels: `flair` float16 [session, s, h, w], `masks` uint8 [session, kind, s, h, w]
    in {0, 1}, `parcellation` int16 [s, h, w] (zeros if absent), `present` bool [session, channel].
    """

    flair: npt.NDArray[np.float16]
    masks: npt.NDArray[np.uint8]
    parcellation: npt.NDArray[np.int16]
    present: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Facts:
    """What the case table will say of a case, as far as its files tell."""

    subject: str
    arm: str | None
    trial: str | None
    covariates: dict[str, Covariate]
    grid: Grid
    present: npt.NDArray[np.bool_]
    parcellation: bool
    digests: dict[str, str]


_Key = tuple[str, str]  # (session, channel)

_CHECKS = {
    "flair": check_image,
    **dict.fromkeys((*MASKS, "brain_mask"), check_binary),
    "parcellation": check_labels,
}


def prepare(
    subject: Subject, root: Path, *, settings: StoreSettings, arms: tuple[str, ...]
) -> tuple[Facts, CaseArrays]:
    """Read, check, normalise and cut one subject of the BIDS folder `root`.

    Raises CaseError with the first reason found why the subject cannot become a case.
    """
    layout = settings.bids
    check_participant(subject, arms, arm_column=layout.arm_column)
    check_sessions(subject)
    sources = _sources(subject)
    volumes = _read(sources, settings)
    brain = volumes[REFERENCE, "brain_mask"].data if (REFERENCE, "brain_mask") in volumes else None
    reference = volumes[REFERENCE, "flair"]
    grid = plan_grid(reference, settings=settings, brain=brain)
    arrays = _cut(volumes, sources, grid, brain=brain, settings=settings)
    row = dict(subject.rows[0])
    facts = Facts(
        subject=row.pop("participant_id"),
        arm=_known(row.pop(layout.arm_column, "n/a")),
        trial=_known(row.pop(layout.trial_column, "n/a")),
        covariates={name: _covariate(text) for name, text in row.items()},
        grid=grid,
        present=arrays.present,
        parcellation=(REFERENCE, "parcellation") in volumes,
        digests={
            source.path.relative_to(root).as_posix(): volumes[key].digest
            for key, source in sources.items()
        },
    )
    return facts, arrays


def _sources(subject: Subject) -> dict[_Key, Source]:
    keys = [(session, channel) for session in SESSIONS for channel in (*CHANNELS, *ANATOMY)]
    found = {key: subject.source(*key) for key in keys}
    return {key: source for key, source in found.items() if source is not None}


def _read(sources: dict[_Key, Source], settings: StoreSettings) -> dict[_Key, Volume]:
    """All of a subject's volumes, checked, on the canonical axes of its w048 FLAIR."""
    reference = read_volume(sources[REFERENCE, "flair"])
    check_field(reference, sources[REFERENCE, "flair"], settings=settings)
    volumes = {}
    for key, source in sources.items():
        volume = reference if key == (REFERENCE, "flair") else read_volume(source)
        check_same_grid(volume, source, grid=reference, tolerance=settings.affine_tolerance)
        _CHECKS[source.channel](volume, source)
        volumes[key] = volume
    return volumes


def _cut(
    volumes: dict[_Key, Volume],
    sources: dict[_Key, Source],
    grid: Grid,
    *,
    brain: npt.NDArray[Any] | None,
    settings: StoreSettings,
) -> CaseArrays:
    slab = grid.slab
    flair = np.zeros((len(SESSIONS), *slab), np.float16)
    masks = np.zeros((len(SESSIONS), len(MASKS), *slab), np.uint8)
    parcellation = np.zeros(slab, np.int16)
    present = np.zeros((len(SESSIONS), len(CHANNELS)), bool)
    for (session, channel), volume in volumes.items():
        k = SESSIONS.index(session)
        if channel == "flair":
            image = _scale(volume, sources[session, channel], brain=brain, settings=settings)
            flair[k] = to_slab(image, grid, order=1, fill=BACKGROUND)
        elif channel in MASKS:
            masks[k, MASKS.index(channel)] = to_slab(volume.data, grid, order=0)
        elif channel == "parcellation":
            parcellation = to_slab(_whole_cortex(volume.data), grid, order=0)
        if channel in CHANNELS:
            present[k, CHANNELS.index(channel)] = True
    return CaseArrays(flair, masks, parcellation, present)


def _scale(
    volume: Volume, source: Source, *, brain: npt.NDArray[Any] | None, settings: StoreSettings
) -> npt.NDArray[np.float32]:
    try:
        return scale_flair(
            volume.data,
            foreground_of(volume.data, brain),
            percentiles=settings.percentiles,
            clear_background=brain is None or settings.apply_brain_mask,
        )
    except ValueError as error:
        raise source.refuse("no contrast", f"{error}; look at the image") from error


def _whole_cortex(labels: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """FreeSurfer ids with cortical parcels (1001-1035, 2001-2035) as the cortex of 3 and 42."""
    ids = labels.astype(np.int16)
    ids[(ids > 1000) & (ids < 1036)] = 3
    ids[(ids > 2000) & (ids < 2036)] = 42
    return ids


def _known(text: str) -> str | None:
    return None if text in UNKNOWN else text


def _covariate(text: str) -> Covariate:
    """A cell of participants.tsv as a number where it reads as one."""
    if text in UNKNOWN:
        return None
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if np.isfinite(value) else None
    return text
