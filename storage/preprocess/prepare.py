"""Preprocess one subject: read, check, normalise and crop its files to the arrays of a case."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.layout import BACKGROUND, CHANNELS, CURRENT, MASKS, SESSIONS, CovariateValue
from storage.nifti.io import NiftiGeometry, Volume, open_nifti
from storage.preprocess.duplicates import (
    check_distinct_channels,
    check_distinct_sessions,
    fingerprint,
)
from storage.preprocess.grid import SlabGrid, place_slab, resample_labels, to_slab
from storage.preprocess.label_schemes import merge_cortical_parcels
from storage.preprocess.lesions import LesionTransfer, measure_transfer
from storage.preprocess.normalise import intensity_range, scale_flair
from storage.preprocess.tissue import tissue_mask
from storage.preprocess.validation import (
    check_brain_mask,
    check_field_of_view,
    check_image,
    check_labels,
    check_mask,
    check_obliquity,
    check_participant,
    check_same_grid,
    check_sessions,
)
from storage.preprocess.visits import Intervals, check_visits
from storage.settings import StoreSettings
from storage.trial.cells import MISSING, is_missing, parse_cell
from storage.trial.dataset import (
    SUBJECT_LEVEL_CHANNELS,
    SourceFile,
    TrialSubject,
)
from storage.trial.participants import covariate_cells, parse_arm


@dataclass(frozen=True)
class CaseArrays:
    """Voxels of a case."""

    #: float16 [session, s, h, w] in [-1, 1].
    flair: npt.NDArray[np.float16]
    #: uint8 [session, kind, s, h, w] in {0, 1}; kinds as in `MASKS`.
    masks: npt.NDArray[np.uint8]
    #: FreeSurfer ids, int16 [s, h, w]; zeros if absent.
    parcellation: npt.NDArray[np.int16]
    #: Whether an input exists, bool [session, channel].
    present: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CaseMetadata:
    """Fields of the case table that follow from a subject's own files."""

    subject: str
    #: Treatment arm, None if unknown.
    arm: str | None
    #: Name of the trial, None if unknown.
    trial: str | None
    #: Other columns of the table of participants.
    covariates: dict[str, CovariateValue]
    #: Position of the slab in the current FLAIR.
    grid: SlabGrid
    #: Whether an input exists, bool [session, channel].
    present: npt.NDArray[np.bool_]
    #: Whether there is a parcellation.
    parcellation: bool
    #: Raw FLAIR values that became -1 and 1, by session.
    intensity: dict[str, tuple[float, float]]
    #: SHA-256 of the files by their path below the trial's folder.
    digests: dict[str, str]
    #: Path of each file below the trial's folder by its role, such as w048/flair.
    sources: dict[str, str]
    #: What became of the lesions of each mask on the way to the slab, by role such as w048/net2.
    lesions: dict[str, LesionTransfer]
    #: Days between its sessions.
    intervals: Intervals
    #: Sentences on its dates that a person should look at.
    notes: tuple[str, ...]
    #: Some voxels of the normalised FLAIR by session, by which copies of an image are found.
    fingerprints: dict[str, str]


def preprocess_subject(
    subject: TrialSubject, root: Path, *, settings: StoreSettings, arms: tuple[str, ...]
) -> tuple[CaseMetadata, CaseArrays]:
    """Read, check, normalise and crop one subject of the trial in `root`.

    Only one file is in memory at a time, besides the brain mask. Raises CaseError with the first
    reason that excludes the subject.
    """
    layout = settings.layout
    check_participant(subject, arms, layout=layout)
    check_sessions(subject, layout)
    visits = check_visits(subject, layout)
    files = tuple(_sources(subject))
    sources = {(source.session, source.channel): source for source in files}
    builder = _begin_case(sources, root, settings)
    for source in sources.values():
        builder.add(source, builder.read(source))
    flair = {source.session: source for source in files if source.channel == "flair"}
    check_distinct_sessions(builder.arrays.flair, flair)
    row = dict(subject.rows[0])
    trial = row.get(layout.trial_column, MISSING)
    metadata = CaseMetadata(
        subject=subject.name,
        arm=parse_arm(row, layout, arms),
        trial=None if is_missing(trial) else trial,
        covariates={name: parse_cell(text) for name, text in covariate_cells(row, layout).items()},
        grid=builder.grid,
        present=builder.arrays.present,
        parcellation=(CURRENT, "parcellation") in sources,
        intensity=builder.intensity,
        digests=dict(sorted(builder.digests.items())),
        sources={
            f"{source.session}/{source.channel}": source.path.relative_to(root).as_posix()
            for source in files
        },
        lesions=builder.lesions,
        intervals=visits.intervals,
        notes=visits.notes,
        fingerprints={
            session: fingerprint(builder.arrays.flair[SESSIONS.index(session)]) for session in flair
        },
    )
    return metadata, builder.arrays


def _sources(subject: TrialSubject) -> Iterator[SourceFile]:
    """Yield the files of a subject, at most one per session and channel."""
    for session in SESSIONS:
        for channel in (*CHANNELS, *SUBJECT_LEVEL_CHANNELS):
            if (source := subject.source(session, channel)) is not None:
                yield source


def _begin_case(
    sources: dict[tuple[str, str], SourceFile], root: Path, settings: StoreSettings
) -> "_CaseBuilder":
    """Place the slab by the current FLAIR and the brain mask, and add both to a new case.

    Removes both from `sources`.
    """
    flair = sources.pop((CURRENT, "flair"))
    mask = sources.pop((CURRENT, "brain_mask"), None)
    file = open_nifti(flair)
    check_obliquity(file.header, flair, limit=settings.max_obliquity)
    check_field_of_view(file.header, flair, settings=settings)
    image = check_image(file.read(), flair)
    brain = None
    if mask is not None:
        brain = _read(mask, settings, grid=file.header)
    grid = place_slab(image, settings=settings, brain=None if brain is None else brain.data)
    builder = _CaseBuilder(root, settings, grid, brain, _empty(grid.slab))
    builder.add(flair, image)
    if mask is not None and brain is not None:
        builder.add(mask, brain)
    return builder


def _read(source: SourceFile, settings: StoreSettings, *, grid: NiftiGeometry) -> Volume:
    """Read and check one file on the grid of the current FLAIR.

    The header is checked before the voxels are decompressed.
    """
    file = open_nifti(source)
    if source.channel == "parcellation":  # on a grid of its own; SynthSeg writes 1 mm
        return check_labels(file.read(), source)
    check_same_grid(file.header, source, grid=grid, tolerance=settings.affine_tolerance)
    volume = file.read()
    if source.channel == "flair":
        return check_image(volume, source)
    check = check_brain_mask if source.channel == "brain_mask" else check_mask
    return check(volume, source, probabilities=settings.probability_masks)


@dataclass(frozen=True)
class _CaseBuilder:
    """Arrays, intensities and digests of a case to which files are added one by one."""

    root: Path
    settings: StoreSettings
    grid: SlabGrid
    brain: Volume | None
    arrays: CaseArrays
    intensity: dict[str, tuple[float, float]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    lesions: dict[str, LesionTransfer] = field(default_factory=dict)
    #: The first file with each content, without masks of zeros.
    contents: dict[str, SourceFile] = field(default_factory=dict)

    def read(self, source: SourceFile) -> Volume:
        return _read(source, self.settings, grid=self.grid.header)

    def add(self, source: SourceFile, volume: Volume) -> None:
        k, grid = SESSIONS.index(source.session), self.grid
        self.digests[source.path.relative_to(self.root).as_posix()] = volume.digest
        if volume.digest in self.contents:
            check_distinct_channels(source, self.contents[volume.digest])
        elif volume.data.any():  # masks without a lesion may well be equal
            self.contents[volume.digest] = source
        if source.channel == "flair":
            image = self._scaled(volume, source)
            self.arrays.flair[k] = to_slab(image, grid, order=1, fill=BACKGROUND)
        elif source.channel in MASKS:
            kind = MASKS.index(source.channel)
            slab = self.arrays.masks[k, kind] = to_slab(volume.data, grid, order=0)
            role = f"{source.session}/{source.channel}"
            self.lesions[role] = measure_transfer(volume.data, slab, grid)
        elif source.channel == "parcellation":
            self.arrays.parcellation[:] = merge_cortical_parcels(self._labels(volume, source))
        if source.channel in CHANNELS:
            self.arrays.present[k, CHANNELS.index(source.channel)] = True

    def _scaled(self, volume: Volume, source: SourceFile) -> npt.NDArray[np.float32]:
        if self.brain is None:
            tissue = shown = tissue_mask(volume.data)
        else:
            tissue = shown = self.brain.data != 0
            if not self.settings.apply_brain_mask:
                shown = tissue | tissue_mask(volume.data)
        try:
            limits = intensity_range(volume.data, tissue, percentiles=self.settings.percentiles)
        except ValueError as error:
            raise source.rejection("no contrast", f"{error}; look at the image") from error
        self.intensity[source.session] = limits
        return scale_flair(volume.data, shown, limits=limits)

    def _labels(self, volume: Volume, source: SourceFile) -> npt.NDArray[np.int16]:
        labels = resample_labels(volume, self.grid)
        if not labels.any():
            reason = "expected labels where the current FLAIR lies, got all of them elsewhere"
            raise source.rejection("parcellation elsewhere", f"{reason}; make it from this FLAIR")
        return labels


def _empty(slab: tuple[int, int, int]) -> CaseArrays:
    return CaseArrays(
        flair=np.zeros((len(SESSIONS), *slab), np.float16),
        masks=np.zeros((len(SESSIONS), len(MASKS), *slab), np.uint8),
        parcellation=np.zeros(slab, np.int16),
        present=np.zeros((len(SESSIONS), len(CHANNELS)), bool),
    )
