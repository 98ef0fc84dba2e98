"""Read and write what a bundle needs to judge how typical a patient is.

The file lies beside the weights and names its bundle. As with the evaluation card, the manifest
does not list it: a digest names weights, and forecasts from these do not depend on the reference.
It holds derived numbers of training patients, such as volumes of lesions, without names.
"""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lesioncast.errors import BundleError
from lesioncast.imaging.features.patient_features import PATIENT_FEATURES
from lesioncast.imaging.typicality import FeatureGaussian, TypicalityReference
from storage.atomic import atomic_write

TYPICALITY_FILE = "typicality.safetensors"
SCHEMA = 1
_GAUSSIAN = ("mean", "scale", "covariance", "arm_means")
_RECORD = "record"  # key of the file's metadata
_REFIT = "run jobs/finetune.py again, or remove the file"


def write_typicality(bundle: Path, digest: str, reference: TypicalityReference) -> None:
    """Write the reference into the folder of the bundle with that digest, in one step."""
    arrays = {name: getattr(reference.gaussian, name) for name in _GAUSSIAN}
    arrays |= {"ranked": reference.ranked, "arm": reference.arm}
    record = {"schema": SCHEMA, "bundle": digest, "features": list(PATIENT_FEATURES)}
    content = save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        {_RECORD: json.dumps(record)},
    )
    atomic_write(bundle / TYPICALITY_FILE, content)


def read_typicality(bundle: Path, digest: str) -> TypicalityReference | None:
    """Return the reference of the bundle with that digest; None where it has none.

    Raise BundleError where the file is damaged, or of another bundle or version.
    """
    path = bundle / TYPICALITY_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            record = json.loads(file.metadata()[_RECORD])
            found = record["schema"], record["bundle"], record["features"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if found != (SCHEMA, digest, list(PATIENT_FEATURES)):
            raise BundleError(
                f"{path}: expected the reference of bundle {digest[:12]} in schema {SCHEMA} with "
                f"{len(PATIENT_FEATURES)} features, got that of {str(found[1])[:12]} in schema "
                f"{found[0]} with {len(found[2])}; {_REFIT}"
            )
        gaussian = FeatureGaussian(*(arrays[name] for name in _GAUSSIAN))
        return TypicalityReference(gaussian, arrays["ranked"], arrays["arm"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: expected a reference, got {error!r}; {_REFIT}") from error
