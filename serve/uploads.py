"""Uploaded images of a patient: the conversion itself makes them a store of one case.

    uploads/<id of the forecast>/bids          the images, in the default layout
    uploads/<id of the forecast>/store.zarr    the store

So the samples of an uploaded subject are those of the same subject in the mounted store. Names of
files and folders are the service's own; the file names that a client sends are never used.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from lesioncast.config import load_config
from lesioncast.errors import ForecastError
from lesioncast.imaging.covariates import Covariate
from serve.api.problems import ApiProblemError
from serve.api.schemas import UploadForecastRequest
from serve.settings import ServiceSettings
from storage import CaseError, Exclusion, StoreSettings, StoreSpec, TrialLayout
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
REQUIRED_UPLOAD_FIELDS = ("w000/flair", "w048/flair")
MAX_STANDARDISED_COVARIATE = 1e6
"""Largest distance of a covariate from its centre, in scales; networks overflow far beyond it."""


def upload_settings(settings: ServiceSettings, spec: StoreSpec) -> StoreSettings | None:
    """Return the settings that uploads are prepared with, None if uploads are off.

    They are those of the mounted store, from the configuration that it was converted with. Raises
    ForecastError if that configuration gives slabs of another shape or spacing.
    """
    if settings.config is None:
        return None
    configured = load_config(settings.config).store
    if (configured.slab, configured.spacing) != (spec.slab, spec.spacing):
        raise ForecastError(
            f"{settings.config}: expected the configuration that the store was converted with, of "
            f"slabs {spec.slab} of {spec.spacing} mm, got {configured.slab} of "
            f"{configured.spacing} mm"
        )
    return replace(configured, layout=TrialLayout())


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
    paths = {name: _path(name, request.subject, settings.layout) for name in images}
    _write_participants(bids, request, settings.layout)
    for name, image in images.items():
        target = bids / paths[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(image, file)
    try:
        for name, path in paths.items():
            _check_unpacked_size(name, bids / path, max_voxels)
        conversion = plan_conversion(
            bids, folder / "store.zarr", settings=settings, arms=tuple(arms), seed=0
        )
        store = convert(conversion, build=_build_in_process)
    except CaseError as error:
        raise _to_problem(error.exclusion, bids, paths) from error
    return store.case(request.subject).digest


def _path(name: str, subject: str, layout: TrialLayout) -> str:
    """Return a path below the BIDS folder, sub-1/ses-w000/anat/sub-1_ses-w000_FLAIR.nii.gz."""
    session, channel = name.split("/")
    pattern: str = getattr(layout, channel)
    path = pattern.format(subject=subject.removeprefix("sub-"), session=session)
    # Patterns have wildcards, which are filled with what the default layout suggests.
    space = "" if channel == "flair" else "_space-orig"
    return path.replace(".nii*", ".nii.gz").replace("*", space)


def _write_participants(bids: Path, request: UploadForecastRequest, layout: TrialLayout) -> None:
    row = {layout.subject_column: request.subject, layout.arm_column: None} | request.covariates
    cells = ("n/a" if value is None else str(value) for value in row.values())
    lines = ("\t".join(row), "\t".join(cells))
    bids.mkdir(parents=True)
    (bids / str(layout.participants)).write_text("\n".join(lines) + "\n")


def _check_unpacked_size(name: str, path: Path, max_voxels: int) -> None:
    session, channel = name.split("/")
    voxels = open_nifti(SourceFile("upload", session, channel, path)).voxels
    size = math.prod(voxels.shape) * voxels.dtype.itemsize
    if size > max_voxels:
        detail = f"{name}: expected at most {max_voxels} bytes of voxels, its header claims {size}."
        raise ApiProblemError(413, detail, field=name)


def _build_in_process(tasks: Sequence[ShardTask]) -> Iterator[int]:
    """Build shards in this process. Raises CaseError for the first subject that is excluded."""
    for task in tasks:
        done = build_shard(task)
        record = decode_record(open_backend(task.path).read(shard_record_path(task.shard.name)))
        for outcome in record.outcomes:
            if isinstance(outcome.result, Exclusion):
                raise CaseError(outcome.result)
        yield done


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

    None means that a covariate is unknown and is always accepted.
    """
    by_name = {covariate.name: covariate for covariate in accepted}
    for name, value in values.items():
        field = f"covariates.{name}"
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
