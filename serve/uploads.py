"""A patient's images as a client sends them, made a store of one case by the conversion itself.

    uploads/<id of the forecast>/bids  store.zarr

So an uploaded subject's samples are those of the same subject in the mounted store. Names and
folders are the service's own: of what a client calls its files nothing is used.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from lesioncast.config import load_config
from lesioncast.errors import ForecastError
from lesioncast.imaging.covariates import Covariate
from serve.api.problems import ApiProblemError
from serve.api.schemas import PatientRef, UploadForecastRequest
from serve.artifacts import upload_dir
from serve.settings import ServiceSettings
from storage import CaseError, Exclusion, Store, StoreSettings, StoreSpec, TrialLayout, open_store
from storage.backends.open import open_backend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.layout import shard_record_path
from storage.nifti.io import open_nifti
from storage.store.shards import decode_record
from storage.trial.dataset import SourceFile

UPLOAD_FIELDS = (
    "w000/flair", "w000/t2", "w000/gad",
    "w048/flair", "w048/t2", "w048/gad", "w048/net2", "w048/parcellation", "w048/brain_mask",
)  # fmt: skip
MAX_STANDARDISED_COVARIATE = (
    1e6  # of a covariate from its centre, in scales: far beyond, networks would overflow
)


def upload_settings(settings: ServiceSettings, spec: StoreSpec) -> StoreSettings | None:
    """How uploads are prepared: as the mounted store was, if `settings.config` says how.

    Raises ForecastError where that made another store.
    """
    if settings.config is None:
        return None
    made = load_config(settings.config).store
    if (made.slab, made.spacing) != (spec.slab, spec.spacing):
        raise ForecastError(
            f"{settings.config}: expected the configuration that the store was converted with, of "
            f"slabs {spec.slab} of {spec.spacing} mm, got {made.slab} of {made.spacing} mm"
        )
    return replace(made, layout=TrialLayout())


def store_for_patient(patient: PatientRef, mounted: Store, artifacts: Path) -> Store:
    """The store that holds a patient."""
    if patient.upload is None:
        return mounted
    return open_store(upload_dir(artifacts, patient.upload) / "store.zarr")


def prepare_upload(
    folder: Path,
    images: Mapping[str, BinaryIO],
    order: UploadForecastRequest,
    *,
    made: StoreSettings,
    arms: Sequence[str],
    max_voxels: int,
) -> str:
    """Make the store of one case in `folder`; returns the digest that names the case.

    Raises RequestError, naming the field, for an image that cannot be used: first of all where its
    header claims more than `max_voxels` bytes, which are not unpacked then.
    """
    bids = folder / "bids"
    paths = {name: _path(name, order.subject, made.layout) for name in images}
    _write_participants(bids, order, made.layout)
    for name, image in images.items():
        target = bids / paths[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(image, file)
    try:
        for name, path in paths.items():
            _check_unpacked_size(name, bids / path, max_voxels)
        conversion = plan_conversion(
            bids, folder / "store.zarr", settings=made, arms=tuple(arms), seed=0
        )
        store = convert(conversion, build=_build_in_process)
    except CaseError as error:
        raise _to_problem(error.exclusion, bids, paths) from error
    return store.case(order.subject).digest


def _path(name: str, subject: str, layout: TrialLayout) -> str:
    """Below the BIDS folder, such as sub-1/ses-w000/anat/sub-1_ses-w000_FLAIR.nii.gz."""
    session, channel = name.split("/")
    pattern: str = getattr(layout, channel)
    named = pattern.format(subject=subject.removeprefix("sub-"), session=session)
    space = "" if channel == "flair" else "_space-orig"
    return named.replace(".nii*", ".nii.gz").replace("*", space)


def _write_participants(bids: Path, order: UploadForecastRequest, layout: TrialLayout) -> None:
    row = {layout.subject_column: order.subject, layout.arm_column: None} | order.covariates
    cells = ("n/a" if value is None else str(value) for value in row.values())
    lines = ("\t".join(row), "\t".join(cells))
    bids.mkdir(parents=True)
    (bids / str(layout.participants)).write_text("\n".join(lines) + "\n")


def _check_unpacked_size(name: str, path: Path, max_voxels: int) -> None:
    session, channel = name.split("/")
    voxels = open_nifti(SourceFile("upload", session, channel, path)).voxels
    size = math.prod(voxels.shape) * voxels.dtype.itemsize
    if size > max_voxels:
        reason = f"{name}: expected at most {max_voxels} bytes of voxels, its header claims {size}."
        raise ApiProblemError(413, reason, field=name)


def _build_in_process(builds: Sequence[ShardTask]) -> Iterator[int]:
    """In this process. Raises CaseError for the first subject that is refused."""
    for build in builds:
        done = build_shard(build)
        record = decode_record(open_backend(build.path).read(shard_record_path(build.shard.name)))
        for outcome in record.outcomes:
            if isinstance(outcome.result, Exclusion):
                raise CaseError(outcome.result)
        yield done


def _to_problem(refusal: Exclusion, bids: Path, paths: Mapping[str, str]) -> ApiProblemError:
    """What conversion says of a file, by the name of the field that it came in."""
    path = Path(refusal.path)
    path = path.relative_to(bids) if path.is_relative_to(bids) else path
    by_path = {Path(path): name for name, path in paths.items()}
    missing = f"{refusal.session}/flair" if refusal.session else "subject"
    field = by_path.get(path, missing)
    return ApiProblemError(422, f"{field}: {refusal.reason}.", field=field)


def validate_covariates(
    covariates: Mapping[str, str | float | None], known: Sequence[Covariate]
) -> None:
    """Raises RequestError for a covariate that the bundle's model is not told of, or one of a value
    that it could not be told; None says that it is missing."""
    by_name = {each.name: each for each in known}
    for name, value in covariates.items():
        if name not in by_name:
            wanted, got = f"some of {', '.join(by_name) or 'none, for this model knows none'}", name
        elif (
            value is not None and not abs(by_name[name].encode(value)) <= MAX_STANDARDISED_COVARIATE
        ):  # or is NaN
            wanted, got = _expected_values(by_name[name]), str(value)
        else:
            continue
        field = f"covariates.{name}"
        raise ApiProblemError(422, f"{field}: expected {wanted}, got {got}.", field=field)


def _expected_values(covariate: Covariate) -> str:
    """What a model can be told of it."""
    if covariate.levels:
        return f"one of {', '.join(covariate.levels)}"
    far = MAX_STANDARDISED_COVARIATE * covariate.scale
    return f"a finite number from {covariate.centre - far:.3g} to {covariate.centre + far:.3g}"


def image_schema() -> dict[str, Any]:
    """The fields of the images, for OpenAPI."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    return {name: file | {"description": "NIfTI, .nii or .nii.gz"} for name in UPLOAD_FIELDS}
