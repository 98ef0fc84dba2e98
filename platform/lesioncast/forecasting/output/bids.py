"""Forecasts as a BIDS derivative: names, sidecars and probability maps on the source grid.

forecasts/dataset_description.json  README  .bidsignore
forecasts/sub-0001/ses-w048/anat/
    sub-0001_ses-w048_space-orig_label-L_desc-forecastW096Placebo_probseg.nii.gz  .json
forecasts/sub-0001/sub-0001_forecast.json  sub-0001_forecast.png
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from lesioncast.arms import bids_label
from lesioncast.errors import ForecastError
from lesioncast.forecasting.disclaimers import POSITIVITY, PREDICTED, RESEARCH_USE
from lesioncast.forecasting.ensemble import Ensemble
from lesioncast.forecasting.output.summary import RunProvenance, SubjectInfo
from lesioncast.imaging.channels import CURRENT, OUTCOME
from storage.export.bids_derivative import (
    flair_bids_uri,
    sidecar_path,
    write_dataset_description,
    write_json,
)
from storage.nifti.gzip_stream import READ_ERRORS
from storage.nifti.io import write_nifti_atomic
from storage.text_files import read_text

SESSION = CURRENT
README = f"""Forecasts of new and enlarging T2 lesions at the next visit, from the scans before it.

{PREDICTED} {RESEARCH_USE}
{POSITIVITY}

Each _probseg map is the share of samples with a lesion at a voxel under the arm that its desc
entity names, on the grid of the subject's own current FLAIR. sub-*_forecast.json holds the
numbers of a subject, sub-*_forecast.png the figure."""
IGNORED = ("*_forecast.json", "*_forecast.png", "*.md")


def forecast_path(root: Path, subject: str, arm: str) -> Path:
    """Return the path of the probability map of `subject` (sub-...) under `arm`."""
    stem = f"{subject}_ses-{SESSION}_space-orig_label-L_desc-forecastW096{bids_label(arm)}_probseg"
    return root / subject / f"ses-{SESSION}" / "anat" / f"{stem}.nii.gz"


def summary_path(root: Path, subject: str) -> Path:
    """Return the path of the summary of `subject`."""
    return root / subject / f"{subject}_forecast.json"


def figure_path(root: Path, subject: str) -> Path:
    """Return the path of the figure of `subject`."""
    return root / subject / f"{subject}_forecast.png"


write_forecast_root = partial(
    write_dataset_description,
    name="lesioncast forecasts of new and enlarging T2 lesions",
    description=f"{PREDICTED} {RESEARCH_USE}",
    readme=README,
    ignored=IGNORED,
)


@dataclass(frozen=True)
class ProbabilityMap:
    """A probability map read from disk: `image` on the source grid, and its BIDS `sidecar`."""

    image: nib.Nifti1Image
    sidecar: Mapping[str, Any]


def forecast_subjects(root: Path) -> list[str]:
    """Return the subjects that have a forecast below `root`, sorted."""
    return sorted(path.parent.name for path in root.glob("sub-*/sub-*_forecast.json"))


def read_maps(root: Path, subject: str) -> list[ProbabilityMap]:
    """Return a subject's maps, one for each arm.

    Raise ForecastError if there are none or one of them cannot be read.
    """
    paths = sorted(forecast_path(root, subject, "*").parent.glob(f"{subject}_*_probseg.nii.gz"))
    if not paths:
        raise ForecastError(
            f"{root}: expected probability maps of {subject}, got none; run jobs/forecast.py"
        )
    return [_read_map(path) for path in paths]


def _read_map(path: Path) -> ProbabilityMap:
    try:
        return ProbabilityMap(nib.load(path), json.loads(read_text(sidecar_path(path))))
    except READ_ERRORS as error:
        raise ForecastError(
            f"{path}: expected a probability map with a sidecar, got {error}; run jobs/forecast.py"
        ) from error


def write_probability(
    root: Path,
    image: nib.Nifti1Image,
    ensemble: Ensemble,
    *,
    arm: str,
    subject: SubjectInfo,
    provenance: RunProvenance,
) -> Path:
    """Write one arm's probability map, `image` on the source grid, and its sidecar."""
    path = forecast_path(root, subject.name, arm)
    write_json(
        sidecar_path(path), sidecar(ensemble, arm=arm, subject=subject, provenance=provenance)
    )
    write_nifti_atomic(image, path)
    return path


def sidecar(
    ensemble: Ensemble, *, arm: str, subject: SubjectInfo, provenance: RunProvenance
) -> dict[str, Any]:
    """Return the BIDS sidecar of a map: content, sources, provenance and disclaimers."""
    return {
        "Type": "Lesion",
        "Description": (
            f"Share of {len(ensemble.seeds)} samples with a lesion under {arm}, of the "
            f"{provenance.target}. {PREDICTED}"
        ),
        "Sources": [flair_bids_uri(subject.name, session) for session in provenance.sessions],
        "SpatialReference": flair_bids_uri(subject.name, SESSION),
        "PredictedNotObserved": True,
        "ResearchUseOnly": RESEARCH_USE,
        "PositivityWarning": POSITIVITY,
        "IdentifiabilityWarnings": list(provenance.identifiability_warnings),
        "Notes": [*provenance.notes, *subject.notes],
        "Arm": arm,
        "ReceivedArm": subject.arm or "n/a",
        "ForecastSession": provenance.visits.label(OUTCOME),
        "Samples": len(ensemble.seeds),
        "Seeds": list(ensemble.seeds),
        "BundleDigest": provenance.bundle,
        "CaseDigest": subject.case_digest,
    }
