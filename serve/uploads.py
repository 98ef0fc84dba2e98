"""Uploaded images of a patient: the conversion itself makes them a store of one case.

    uploads/<id of the forecast>/bids          the images, in the default layout
    uploads/<id of the forecast>/store.zarr    the store

The images are prepared with the settings that the mounted store records. So the samples of an
uploaded subject are those of the same subject in that store. Names of files and folders are the
service's own; the file names that a client sends are never used.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from lesioncast.imaging.covariates import Covariate
from lesioncast.imaging.intervals import INTERVALS, check_days
from serve.api.problems import ApiProblemError
from serve.api.schemas import UploadForecastRequest
from serve.worker.retry import is_transient
from storage import CaseError, Exclusion, StoreSettings
from storage.convert.patient import (
    PATIENT_IMAGES,
    convert_patient,
    patient_image_path,
    write_patient_table,
)
from storage.nifti.io import open_nifti
from storage.trial.dataset import REQUIRED_SESSIONS, SourceFile

UPLOAD_FIELDS = PATIENT_IMAGES
REQUIRED_UPLOAD_FIELDS = tuple(f"{session}/flair" for session in REQUIRED_SESSIONS)
MAX_STANDARDISED_COVARIATE = 1e6
"""Largest distance of a covariate from its centre, in scales; networks overflow far beyond it."""


def prepare_upload(
    folder: Path,
    images: Mapping[str, BinaryIO],
    request: UploadForecastRequest,
    *,
    settings: StoreSettings,
    arms: Sequence[str],
    max_voxels: int,
) -> str:
    """Make a store of one case in `folder`. Returns the digest that names the case.

    Raises ApiProblemError that names the field for an image that cannot be used. Headers are
    checked first: an image whose header states more than `max_voxels` bytes is not unpacked.
    """
    bids = folder / "bids"
    paths = {name: patient_image_path(name, request.subject, settings.layout) for name in images}
    write_patient_table(bids, request.subject, request.covariates, layout=settings.layout)
    for name, image in images.items():
        target = bids / paths[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(image, file)
    try:
        for name, path in paths.items():
            _check_unpacked_size(name, bids / path, max_voxels)
        store = convert_patient(bids, folder / "store.zarr", settings=settings, arms=arms)
    except CaseError as error:
        if is_transient(error):  # our disk does not answer: the image may be good
            raise
        raise _to_problem(error.exclusion, bids, paths) from error
    return store.case(request.subject).digest


def _check_unpacked_size(name: str, path: Path, max_voxels: int) -> None:
    session, channel = name.split("/")
    voxels = open_nifti(SourceFile("upload", session, channel, path)).voxels
    size = math.prod(voxels.shape) * voxels.dtype.itemsize
    if size > max_voxels:
        detail = f"{name}: expected at most {max_voxels} bytes of voxels, its header claims {size}."
        raise ApiProblemError(413, detail, field=name)


def _to_problem(exclusion: Exclusion, bids: Path, paths: Mapping[str, str]) -> ApiProblemError:
    """Convert an exclusion to a problem that names the field of the file at fault."""
    path = Path(exclusion.path)
    path = path.relative_to(bids) if path.is_relative_to(bids) else path
    field_by_path = {Path(path): name for name, path in paths.items()}
    # An exclusion that names none of the files is about a FLAIR that is missing.
    missing = f"{exclusion.session}/flair" if exclusion.session else "subject"
    field = field_by_path.get(path, missing)
    return ApiProblemError(422, f"{field}: {exclusion.reason}.", field=field)


def validate_covariates(
    values: Mapping[str, str | float | None], accepted: Sequence[Covariate]
) -> None:
    """Raise ApiProblemError for a covariate or a value that the model does not take.

    None means that a covariate is unknown and is always accepted. So are the days between sessions:
    a forecast says where they are not those of training.
    """
    by_name = {covariate.name: covariate for covariate in accepted}
    for name, value in values.items():
        field = f"covariates.{name}"
        if name in INTERVALS:
            try:
                check_days(name, value)
            except ValueError as error:
                raise ApiProblemError(422, f"{error}.", field=field) from error
            if name not in by_name:
                continue
        if name not in by_name:
            expected = f"some of {', '.join(by_name) or 'none, for this model knows none'}"
            raise ApiProblemError(422, f"{field}: expected {expected}, got {name}.", field=field)
        # "not <=" rather than ">" also catches NaN, the encoding of a value that is unusable.
        if value is not None and not abs(by_name[name].encode(value)) <= MAX_STANDARDISED_COVARIATE:
            expected = _expected_values(by_name[name])
            raise ApiProblemError(422, f"{field}: expected {expected}, got {value}.", field=field)


def _expected_values(covariate: Covariate) -> str:
    """Describe the values of a covariate that the model takes."""
    if covariate.levels:
        return f"one of {', '.join(covariate.levels)}"
    distance = MAX_STANDARDISED_COVARIATE * covariate.scale
    low, high = covariate.centre - distance, covariate.centre + distance
    return f"a finite number from {low:.3g} to {high:.3g}"
