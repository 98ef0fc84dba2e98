"""Forecasts as a BIDS derivative: names, sidecars and probability maps on the source grid.

forecasts/dataset_description.json  README  .bidsignore
forecasts/sub-0001/ses-w048/anat/
    sub-0001_ses-w048_space-orig_label-L_desc-forecastW096Placebo_probseg.nii.gz  .json
forecasts/sub-0001/sub-0001_forecast.json  sub-0001_forecast.png  sub-0001_forecast.html

Maps have the session and the entities of the FLAIR on whose grid they lie, so readers find them by
their sidecars.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from lesioncast.arms import bids_label
from lesioncast.errors import ForecastError
from lesioncast.forecasting.disclaimers import POSITIVITY, PREDICTED, RESEARCH_USE
from lesioncast.forecasting.ensemble import Ensemble
from lesioncast.forecasting.output.calibrated import CalibratedArm
from lesioncast.forecasting.output.summary import RunProvenance, SubjectInfo, all_warnings
from lesioncast.forecasting.output.typicality import typicality_line
from lesioncast.imaging.channels import CURRENT, OUTCOME
from storage.export.bids_derivative import (
    sidecar_path,
    write_dataset_description,
    write_json,
)
from storage.export.bids_names import DerivedNames
from storage.nifti.gzip_stream import READ_ERRORS
from storage.nifti.io import write_nifti_atomic
from storage.text_files import read_text
from storage.trial.dataset import REFERENCE_FLAIR

README = f"""Forecasts of new and enlarging T2 lesions at the next visit, from the scans before it.

{PREDICTED} {RESEARCH_USE}
{POSITIVITY}

Each _probseg map is the probability of a lesion at a voxel under the arm that its desc entity
names, on the grid of the subject's own current FLAIR. Its sidecar says whether it was computed in
closed form or as the share of samples with a lesion. sub-*_forecast.json holds the numbers of a
subject, sub-*_forecast.png the figure and sub-*_forecast.html a page to explore."""
IGNORED = ("*_forecast.json", "*_forecast.png", "*_forecast.html", "*.md")


def new_map_path(root: Path, names: DerivedNames, arm: str) -> Path:
    """Return the path of the probability map to write for a case under `arm`."""
    forecast = f"forecast{bids_label(names.sessions[OUTCOME])}{bids_label(arm)}"
    name = names.path(CURRENT, "probseg", space="orig", label="L", desc=forecast)
    return root / name


def forecast_path(root: Path, subject: str, arm: str) -> Path:
    """Return the path of the probability map that `subject` (sub-...) has under `arm`.

    Raise ForecastError if there is none.
    """
    for path in _map_paths(root, subject):
        if _read_sidecar(path).get("Arm") == arm:
            return path
    raise ForecastError(
        f"{root}: expected a probability map of {subject} under {arm}, got none; run "
        "jobs/forecast.py"
    )


def summary_path(root: Path, subject: str) -> Path:
    """Return the path of the summary of `subject`."""
    return root / subject / f"{subject}_forecast.json"


def figure_path(root: Path, subject: str) -> Path:
    """Return the path of the figure of `subject`."""
    return root / subject / f"{subject}_forecast.png"


def page_path(root: Path, subject: str) -> Path:
    """Return the path of the page of `subject`, one HTML file."""
    return root / subject / f"{subject}_forecast.html"


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
    paths = _map_paths(root, subject)
    if not paths:
        raise ForecastError(
            f"{root}: expected probability maps of {subject}, got none; run jobs/forecast.py"
        )
    return [_read_map(path) for path in paths]


def _map_paths(root: Path, subject: str) -> list[Path]:
    return sorted((root / subject).glob(f"ses-*/anat/{subject}_*_probseg.nii.gz"))


@contextmanager
def _read_errors_as_forecast_error(path: Path) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise ForecastError(
            f"{path}: expected a probability map with a sidecar, got {error}; run jobs/forecast.py"
        ) from error


def _read_sidecar(path: Path) -> Mapping[str, Any]:
    with _read_errors_as_forecast_error(path):
        record = json.loads(read_text(sidecar_path(path)))
        if not isinstance(record, dict):
            raise ValueError(f"a sidecar of {type(record).__name__}")
        return record


def _read_map(path: Path) -> ProbabilityMap:
    with _read_errors_as_forecast_error(path):
        return ProbabilityMap(nib.load(path), _read_sidecar(path))


def write_probability(path: Path, image: nib.Nifti1Image, record: Mapping[str, Any]) -> None:
    """Write a probability map, `image` on the source grid, and its sidecar."""
    write_json(sidecar_path(path), record)
    write_nifti_atomic(image, path)


def remove_other_maps(root: Path, subject: str, keep: Collection[Path]) -> None:
    """Remove maps of a subject that an earlier run wrote under other names or for other arms."""
    for path in set(_map_paths(root, subject)).difference(keep):
        path.unlink()
        sidecar_path(path).unlink(missing_ok=True)


def describe_map(ensemble: Ensemble, arm: str) -> str:
    """Return in words what the map of an ensemble shows."""
    if ensemble.closed_form_map is None:
        return f"Share of {len(ensemble.seeds)} samples with a lesion under {arm}"
    return f"Probability of a lesion under {arm}, computed without sampling"


def describe_interval(calibrated: CalibratedArm | None, provenance: RunProvenance) -> str:
    """Return a sentence on the calibrated number of lesions; nothing if there is none."""
    interval = None if calibrated is None else calibrated.reported_interval
    if interval is None or provenance.calibration is None:
        return ""
    return (
        f"Number of lesions, {interval.level:.0%} interval: {interval.low} to {interval.high}, "
        f"learned on {provenance.calibration.cohort.name}. "
    )


def sidecar(
    ensemble: Ensemble,
    *,
    arm: str,
    subject: SubjectInfo,
    names: DerivedNames,
    provenance: RunProvenance,
    calibrated: CalibratedArm | None,
) -> dict[str, Any]:
    """Return the BIDS sidecar of a map: content, sources, provenance and disclaimers."""
    return {
        "Type": "Lesion",
        "Description": f"{describe_map(ensemble, arm)}, of the {provenance.target}. "
        f"{describe_interval(calibrated, provenance)}{PREDICTED}",
        "Sources": [names.uri(name) for name in provenance.condition if name in names.sources],
        "SpatialReference": names.uri(REFERENCE_FLAIR),
        "PredictedNotObserved": True,
        "ResearchUseOnly": RESEARCH_USE,
        "PositivityWarning": POSITIVITY,
        "Warnings": [asdict(warning) for warning in all_warnings(subject, provenance)],
        "Typicality": typicality_line(subject.typicality),
        "Notes": [*provenance.notes, *subject.notes],
        "Calibrated": None if calibrated is None else asdict(calibrated),
        "Arm": arm,
        "ReceivedArm": subject.arm or "n/a",
        "ForecastSession": provenance.visits.label(OUTCOME),
        "Samples": len(ensemble.seeds),
        "Seeds": list(ensemble.seeds),
        "BundleDigest": provenance.bundle,
        "CaseDigest": subject.case_digest,
    }
