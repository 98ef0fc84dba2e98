"""Write a simulated trial as a BIDS dataset: raw FLAIR, and derivatives for masks and truth.

A subject is written into a staging folder and then moved into place, its raw folder last. So a
`sub-*` folder is either complete or absent. Files about the whole trial (settings, sidecars and
participants.tsv) are written once, by `initialise_dataset` and `finalise_dataset`.
"""

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.arrays import Floats
from lesioncast.errors import TrialError
from lesioncast.simulation.bids_metadata import (
    DERIVATIVES,
    fingerprint,
    participant_table,
    session_table,
    shared_files,
)
from lesioncast.simulation.disease import PERIODS, draw_patient
from lesioncast.simulation.ground_truth import RANKS
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import SESSIONS, SimulatedSubject, simulate_subject
from storage.atomic import atomic_write_text
from storage.trial.description import DESCRIPTION_FILE, SIMULATED_WITH

_STAGING = ".staging-"


def subject_name(index: int) -> str:
    """Return the participant_id of subject `index`; index 0 is sub-0001."""
    return f"sub-{index + 1:04d}"


def subject_index(name: str) -> int | None:
    """Return the index of the subject of that participant_id; None for another form of name."""
    number = name.removeprefix("sub-")
    return int(number) - 1 if number.isdigit() and number != name else None


def initialise_dataset(root: Path, settings: SimulationSettings) -> list[int]:
    """Prepare `root` for this trial and return the indices of the subjects that are missing.

    Raises TrialError if `root` holds other files or a trial with other settings.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    description = root / DESCRIPTION_FILE
    if description.exists():
        _check_same_settings(root, json.loads(description.read_text()), settings)
    elif any(root.iterdir()):
        raise TrialError(
            f"{root}: expected an empty folder or a simulated trial, got files without "
            f"{DESCRIPTION_FILE}; choose another folder"
        )
    else:
        for name, text in shared_files(settings).items():
            atomic_write_text(root / name, text)
    return [i for i in range(settings.subjects) if not (root / subject_name(i)).exists()]


def _check_same_settings(
    root: Path, description: dict[str, Any], settings: SimulationSettings
) -> None:
    """Raise TrialError if the dataset in `root` was not simulated with these settings."""
    stored, current = description.get(SIMULATED_WITH), fingerprint(settings)
    if not isinstance(stored, dict):
        raise TrialError(
            f"{root}: expected an empty folder or a simulated trial, got another BIDS dataset "
            f"({description.get('Name', 'unnamed')}); choose another folder"
        )
    if stored != current:
        changed = sorted(key for key in stored | current if stored.get(key) != current.get(key))
        changes = ", ".join(f"{key} {stored.get(key)} (now {current.get(key)})" for key in changed)
        raise TrialError(
            f"{root}: expected a trial simulated with the same settings, got one with {changes}; "
            "choose another folder or remove this one"
        )


def write_subjects(root: Path, settings: SimulationSettings, indices: Iterable[int]) -> list[str]:
    """Simulate a block of subjects into an initialised dataset and return their names.

    Blocks share no state, so they may run in any process that can write to `root`.
    """
    return [_write_subject(root, settings, simulate_subject(settings, i)) for i in indices]


def finalise_dataset(root: Path, settings: SimulationSettings) -> int:
    """Write participants.tsv for all subjects in `root` and return their number."""
    for leftover in root.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    names = (folder.name for folder in root.glob("sub-*"))
    indices = sorted(index for name in names if (index := subject_index(name)) is not None)
    rows = ((subject_name(i), draw_patient(settings, i)) for i in indices)
    text, path = participant_table(rows), root / "participants.tsv"
    if not path.exists() or path.read_text() != text:
        atomic_write_text(path, text)
    return len(indices)


def _write_subject(root: Path, settings: SimulationSettings, subject: SimulatedSubject) -> str:
    """Write a subject's files so that its raw folder appears last, and return its name."""
    name = subject_name(subject.index)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=root) as folder:
        staging = Path(folder)
        for path, content in _files(settings, subject, name):
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_bytes(content)
        for part in (*(Path("derivatives", kind) for kind in DERIVATIVES), Path()):
            target = root / part / name
            if target.exists():  # left by a run that ended before the raw folder was moved
                shutil.rmtree(target)
            (staging / part / name).rename(target)
    return name


def _files(
    settings: SimulationSettings, subject: SimulatedSubject, name: str
) -> Iterator[tuple[Path, bytes]]:
    """Yield the path below the trial's root and the content of each file of a subject."""
    affine = grid_affine(settings)

    def anat(session: str, suffix: str, kind: str | None = None) -> Path:
        top = Path("derivatives", kind) if kind else Path()
        return top / name / f"ses-{session}" / "anat" / f"{name}_ses-{session}_{suffix}"

    yield Path(name, f"{name}_sessions.tsv"), session_table(subject.covariates["age"]).encode()
    for s, session in enumerate(SESSIONS):
        flair = np.rint(subject.flair[s]).astype(np.int16)
        yield anat(session, "FLAIR.nii.gz"), nifti_bytes(flair, affine)
        masks = {"T2": subject.t2[s], "Gad": subject.gad[s]}
        if session in PERIODS:
            masks["NET2"] = subject.net2(session)
        for channel, mask in masks.items():
            suffix = f"space-orig_label-L_desc-{channel}_mask.nii.gz"
            yield anat(session, suffix, "lesions"), nifti_bytes(mask.astype(np.uint8), affine)
    labels = subject.parcellation.astype(np.uint8)
    parcellation = anat("w048", "space-orig_desc-synthseg_dseg.nii.gz", "synthseg")
    yield parcellation, nifti_bytes(labels, affine)
    for p, period in enumerate(PERIODS):
        yield anat(period, f"{RANKS}.nii.gz", "truth"), nifti_bytes(subject.ranks[p], affine)
        counts = dict(zip(PAPER_ARM_NAMES, subject.counts[p].tolist(), strict=True))
        yield anat(period, f"{RANKS}.json", "truth"), json.dumps({"LesionCounts": counts}).encode()


def grid_affine(settings: SimulationSettings) -> Floats:
    """Return the affine from voxels (w, h, s) to RAS+ mm with the origin at the volume's centre."""
    spacing = np.array(settings.spacing[::-1])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(settings.shape[::-1]) - 1) / 2 * spacing
    return affine


@lru_cache(maxsize=8)
def _header(affine: bytes) -> nib.Nifti1Header:
    """Return the header for an affine; callers copy it, because each file changes its header."""
    matrix = np.frombuffer(affine).reshape(4, 4)
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header.set_sform(matrix, 1)
    header.set_qform(matrix, 1)
    return header


def nifti_bytes(volume: npt.NDArray[Any], affine: Floats) -> bytes:
    """Return a volume [s, h, w] as .nii.gz; equal volumes give equal bytes (no time stamp)."""
    header = _header(affine.tobytes()).copy()
    header.set_data_dtype(volume.dtype)
    image = nib.Nifti1Image(volume.T, None, header)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
