"""Files that every BIDS derivative needs: dataset description and image sidecars."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.atomic import atomic_write_text
from storage.version import installed_version

BIDS_VERSION = "1.11.1"
RAW_DATASET_LINK = "raw"  # name of the source data set in BIDS URIs of a derivative


def write_dataset_description(
    root: Path,
    *,
    name: str,
    description: str,
    source: Path | str,
    readme: str,
    ignored: Sequence[str],
) -> None:
    """Write dataset_description.json, README and .bidsignore of a derivative.

    `source` is the BIDS data set from which it was made. Validators skip files that match
    `ignored`, which are patterns of .bidsignore.
    """
    origin = source if "://" in str(source) else Path(source).absolute().as_uri()
    record = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "lesioncast", "Version": installed_version(), "Description": description}
        ],
        "SourceDatasets": [{"URL": origin}],
        "DatasetLinks": {RAW_DATASET_LINK: origin},
    }
    write_json(root / "dataset_description.json", record)
    atomic_write_text(root / "README", readme + "\n")
    atomic_write_text(root / ".bidsignore", "\n".join(ignored) + "\n")


def flair_bids_uri(subject: str, session: str) -> str:
    """Return the BIDS URI of a subject's own FLAIR."""
    return (
        f"bids:{RAW_DATASET_LINK}:{subject}/ses-{session}/anat/{subject}_ses-{session}_FLAIR.nii.gz"
    )


def sidecar_path(image: Path) -> Path:
    """Return the path of the JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON to `path` in one step. Raises ValueError for NaN."""
    atomic_write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
