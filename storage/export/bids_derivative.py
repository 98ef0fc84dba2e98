"""What every BIDS derivative needs: its own description, and sidecars that say where images lie."""

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from storage.atomic import atomic_write

BIDS_VERSION = "1.11.1"
RAW_DATASET_LINK = "raw"  # what BIDS URIs here call the data set that a derivative was made from


def write_dataset_description(
    root: Path,
    *,
    name: str,
    description: str,
    source: Path | str,
    readme: str,
    ignored: Sequence[str],
) -> None:
    """The derivative's own description; `source` is the BIDS data set that it was made from.

    Validators pass over files that are `ignored`, as patterns of .bidsignore.
    """
    origin = source if "://" in str(source) else Path(source).absolute().as_uri()
    record = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "lesioncast", "Version": package_version(), "Description": description}
        ],
        "SourceDatasets": [{"URL": origin}],
        "DatasetLinks": {RAW_DATASET_LINK: origin},
    }
    write_json(root / "dataset_description.json", record)
    atomic_write(root / "README", (readme + "\n").encode())
    atomic_write(root / ".bidsignore", ("\n".join(ignored) + "\n").encode())


def package_version() -> str:
    """The installed version of this project."""
    try:
        return version("lesioncast")
    except PackageNotFoundError:  # run from the source tree
        return "unreleased"


def flair_bids_uri(subject: str, session: str) -> str:
    """The BIDS URI of a subject's own FLAIR."""
    return (
        f"bids:{RAW_DATASET_LINK}:{subject}/ses-{session}/anat/{subject}_ses-{session}_FLAIR.nii.gz"
    )


def sidecar_path(image: Path) -> Path:
    """The JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_json(path: Path, record: Any) -> None:
    """`record` as indented JSON at `path`, whole or not at all; NaN is an error."""
    atomic_write(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
