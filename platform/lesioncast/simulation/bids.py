"""A simulated trial on disk as a BIDS dataset: raw FLAIR, and derivatives for masks and truth.

A subject's folders are made aside and moved into place, the raw one last, so that a `sub-*` folder
is there completely or not at all. What the whole trial shares (settings, sidecars, the table of
participants) is written by `open_trial` and `close_trial`, once.
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

_DESCRIPTION = "dataset_description.json"
_STAGING = ".staging-"


def subject_name(index: int) -> str:
    """The participant_id of subject `index`, counted from sub-0001."""
    return f"sub-{index + 1:04d}"


def initialise_dataset(root: Path, settings: SimulationSettings) -> list[int]:
    """Make `root` ready for this trial and return the indices of the subjects it still lacks.

    Raises TrialError where `root` holds something else, or a trial of other settings.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    description = root / _DESCRIPTION
    if description.exists():
        _require_same(root, json.loads(description.read_text()), settings)
    elif any(root.iterdir()):
        raise TrialError(
            f"{root}: expected an empty folder or a simulated trial, got files without "
            f"{_DESCRIPTION}; choose another folder"
        )
    else:
        for name, text in shared_files(settings).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            _write_text(root / name, text)
    return [i for i in range(settings.subjects) if not (root / subject_name(i)).exists()]


def _require_same(root: Path, description: dict[str, Any], settings: SimulationSettings) -> None:
    found, wanted = description.get("SimulatedWith"), fingerprint(settings)
    if not isinstance(found, dict):
        raise TrialError(
            f"{root}: expected an empty folder or a simulated trial, got another BIDS dataset "
            f"({description.get('Name', 'unnamed')}); choose another folder"
        )
    if found != wanted:
        differing = sorted(key for key in found | wanted if found.get(key) != wanted.get(key))
        changes = ", ".join(f"{key} {found.get(key)} (now {wanted.get(key)})" for key in differing)
        raise TrialError(
            f"{root}: expected a trial simulated with the same settings, got one with {changes}; "
            "choose another folder or remove this one"
        )


def write_subjects(root: Path, settings: SimulationSettings, indices: Iterable[int]) -> list[str]:
    """Simulate a block of subjects into an opened trial; returns their names.

    Needs no Ray and shares nothing, so blocks may run anywhere that sees `root`.
    """
    return [_write_subject(root, settings, simulate_subject(settings, i)) for i in indices]


def finalise_dataset(root: Path, settings: SimulationSettings) -> int:
    """Write participants.tsv for the subjects that are there; returns how many."""
    for leftover in root.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    indices = sorted(int(folder.name[4:]) - 1 for folder in root.glob("sub-*"))
    rows = ((subject_name(i), draw_patient(settings, i)) for i in indices)
    text, path = participant_table(rows), root / "participants.tsv"
    if not path.exists() or path.read_text() != text:
        _write_text(path, text)
    return len(indices)


def _write_subject(root: Path, settings: SimulationSettings, subject: SimulatedSubject) -> str:
    name = subject_name(subject.index)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=root) as folder:
        staging = Path(folder)
        for path, content in _files(settings, subject, name):
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_bytes(content)
        for place in (*(Path("derivatives", kind) for kind in DERIVATIVES), Path()):
            target = root / place / name
            if target.exists():
                shutil.rmtree(target)
            (staging / place / name).rename(target)
    return name


def _files(
    settings: SimulationSettings, subject: SimulatedSubject, name: str
) -> Iterator[tuple[Path, bytes]]:
    """Every file of a subject, as its path below the trial's root and its content."""
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


def grid_affine(settings: SimulationSettings) -> npt.NDArray[np.float64]:
    """Voxel (w, h, s) to RAS+ mm, with the origin of the world in the volume's middle."""
    spacing = np.array(settings.spacing[::-1])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(settings.shape[::-1]) - 1) / 2 * spacing
    return affine


@lru_cache(maxsize=8)  # a trial has one affine, a file a header of its own
def _header(affine: bytes) -> nib.Nifti1Header:
    matrix = np.frombuffer(affine).reshape(4, 4)
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header.set_sform(matrix, 1)
    header.set_qform(matrix, 1)
    return header


def nifti_bytes(volume: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> bytes:
    """A volume [s, h, w] as .nii.gz, the same bytes whenever it is written."""
    header = _header(affine.tobytes()).copy()
    header.set_data_dtype(volume.dtype)
    image = nib.Nifti1Image(volume.T, None, header)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _write_text(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.part")
    staged.write_text(text)
    staged.rename(path)
