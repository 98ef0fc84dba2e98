"""Files that every BIDS derivative needs: dataset description and image sidecars."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.atomic import atomic_write_text
from storage.export.bids_names import RAW_DATASET_LINK
from storage.version import installed_version

BIDS_VERSION = "1.11.1"


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

    `source` is the data set from which it was made: a folder, or a URI, which may be relative to
    the derivative. Validators skip files that match `ignored`, which are patterns of .bidsignore.
    """
    origin = source.absolute().as_uri() if isinstance(source, Path) else source
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


def sidecar_path(image: Path) -> Path:
    """Return the path of the JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON to `path` in one step. Raises ValueError for NaN."""
    atomic_write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
