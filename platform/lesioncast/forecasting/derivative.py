"""Forecasts as a BIDS derivative: names, sidecars and probability maps on the source grid.

forecasts/dataset_description.json  README  .bidsignore
forecasts/sub-0001/ses-w048/anat/
    sub-0001_ses-w048_space-orig_label-L_desc-forecastW096Placebo_probseg.nii.gz  .json
forecasts/sub-0001/sub-0001_forecast.json  sub-0001_forecast.png
"""

import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nibabel as nib

from lesioncast.evaluation.ensembles import Ensemble
from lesioncast.forecasting.notice import POSITIVITY, PREDICTED, RESEARCH_USE
from lesioncast.forecasting.summary import Provenance, Subject
from storage.nifti import write_atomic, write_nifti_atomic

BIDS_VERSION = "1.11.1"
SESSION = "w048"
README = f"""Forecasts of new and enlarging T2 lesions at week 96 from the scans at weeks 0 and 48.

{PREDICTED} {RESEARCH_USE}
{POSITIVITY}

Each _probseg map is the share of samples with a lesion at a voxel under the arm that its desc
entity names, on the grid of the subject's own FLAIR at week 48. sub-*_forecast.json holds the
numbers of a subject, sub-*_forecast.png the picture."""
IGNORED = ("*_forecast.json", "*_forecast.png", "*.md")


def forecast_path(root: Path, subject: str, arm: str) -> Path:
    """Where the probability map of `subject` (sub-...) under `arm` lies."""
    stem = f"{subject}_ses-{SESSION}_space-orig_label-L_desc-forecastW096{_camel(arm)}_probseg"
    return root / subject / f"ses-{SESSION}" / "anat" / f"{stem}.nii.gz"


def summary_path(root: Path, subject: str) -> Path:
    """Where the numbers of `subject` lie."""
    return root / subject / f"{subject}_forecast.json"


def figure_path(root: Path, subject: str) -> Path:
    """Where the picture of `subject` lies."""
    return root / subject / f"{subject}_forecast.png"


def _camel(arm: str) -> str:
    """BIDS labels are alphanumeric: dimethyl_fumarate becomes DimethylFumarate."""
    return "".join(word[0].upper() + word[1:] for word in re.findall("[A-Za-z0-9]+", arm))


def write_root(root: Path, *, source: Path) -> None:
    """The derivative's own description; `source` is the BIDS data set that was forecast from."""
    description = {
        "Name": "lesioncast forecasts of new and enlarging T2 lesions",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "lesioncast",
                "Version": _version(),
                "Description": f"{PREDICTED} {RESEARCH_USE}",
            }
        ],
        "SourceDatasets": [{"URL": source.absolute().as_uri()}],
        "DatasetLinks": {"raw": source.absolute().as_uri()},
    }
    write_json(root / "dataset_description.json", description)
    write_atomic(root / "README", (README + "\n").encode())
    write_atomic(root / ".bidsignore", ("\n".join(IGNORED) + "\n").encode())


def _version() -> str:
    try:
        return version("lesioncast")
    except PackageNotFoundError:  # run from the source tree
        return "unreleased"


def write_probability(
    root: Path,
    image: nib.Nifti1Image,
    ensemble: Ensemble,
    *,
    arm: str,
    subject: Subject,
    provenance: Provenance,
) -> Path:
    """Write one arm's probability map, `image` on the source grid, and its sidecar."""
    path = forecast_path(root, subject.name, arm)
    write_json(
        path.with_name(path.name.removesuffix(".nii.gz") + ".json"),
        sidecar(ensemble, arm=arm, subject=subject, provenance=provenance),
    )
    write_nifti_atomic(image, path)
    return path


def sidecar(
    ensemble: Ensemble, *, arm: str, subject: Subject, provenance: Provenance
) -> dict[str, Any]:
    """What the map is, of whom, made with what, and what it is not."""
    anat = f"bids:raw:{subject.name}/ses-{{}}/anat/{subject.name}_ses-{{}}_FLAIR.nii.gz"
    return {
        "Type": "Lesion",
        "Description": (
            f"Share of {len(ensemble.seeds)} samples with a new or enlarging T2 lesion at w096 "
            f"since w048 under {arm}. {PREDICTED}"
        ),
        "Sources": [anat.format(session, session) for session in provenance.sessions],
        "SpatialReference": anat.format(SESSION, SESSION),
        "PredictedNotObserved": True,
        "ResearchUseOnly": RESEARCH_USE,
        "PositivityWarning": POSITIVITY,
        "Warnings": list(provenance.warnings),
        "Remarks": list(provenance.remarks),
        "Arm": arm,
        "ReceivedArm": subject.arm or "n/a",
        "ForecastSession": "w096",
        "Samples": len(ensemble.seeds),
        "Seeds": list(ensemble.seeds),
        "BundleDigest": provenance.bundle,
        "CaseDigest": provenance.case,
    }


def write_json(path: Path, record: Any) -> None:
    """`record` as indented JSON at `path`, whole or not at all; NaN is an error."""
    write_atomic(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
