"""Fit the spatial prior to the training cases, before stage 1; both stages read the same file."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lesioncast.arrays import Bools, LabelMap, Mask
from lesioncast.bundle.spatial_base import (
    SpatialBase,
    read_record,
    write_spatial_base,
)
from lesioncast.diffusion.spatial.base_map import voxel_quantiles
from lesioncast.errors import ChangedSettingsError, TrainingError
from lesioncast.imaging.channels import MASKS, OUTCOME, SESSIONS, encode_case, parse_channels
from lesioncast.imaging.regions import regional_lesions, touching_ratios
from lesioncast.priors.spatial.fit import SpatialFitSettings, fit_spatial_prior
from lesioncast.priors.spatial.inputs import SpatialCase, SpatialInputs
from lesioncast.training.experiment import Experiment, FittedBase
from storage import Case, CaseArrays, Store
from storage.digest import sha256_file

logger = logging.getLogger(__name__)

FILE = "spatial_prior.safetensors"
QUANTILES = 32  # of the lesion voxels of a load class
ACTIVE = "active"  # key of the record: rows of the training cases with new lesions
TOUCHING = "touching_ratios"  # key of the record: see BundleConfig
MADE_FROM = "made_from"  # key of the record: what the fit depends on
NET2 = SESSIONS.index(OUTCOME), MASKS.index("net2")


def with_fitted_base(experiment: Experiment, store: Store) -> Experiment:
    """Fit the spatial prior of an experiment, unless its file is there, and return it with that.

    An experiment whose networks have no base map is returned as it is. Raise ChangedSettingsError
    if the file was made from other cases or settings, and TrainingError if no case is active.
    """
    if not experiment.model.unet.base_map:
        return experiment
    path = experiment.runs / FILE
    if not path.is_file():
        fit_base(experiment, store)
    return with_base_of_run(experiment)


def with_base_of_run(experiment: Experiment) -> Experiment:
    """Return an experiment with the spatial prior that stage 1 fitted, if its networks need one.

    Raise TrainingError if there is none, and ChangedSettingsError if it was made from other cases
    or settings.
    """
    if not experiment.model.unet.base_map:
        return experiment
    path = experiment.runs / FILE
    if not path.is_file():
        raise TrainingError(
            f"{path}: expected the spatial prior of stage 1, got none; run jobs/pretrain.py first"
        )
    record = read_record(path)
    made_from, wanted = record[MADE_FROM], inputs_of_fit(experiment)
    changed = [key for key in wanted if wanted[key] != made_from.get(key)]
    if changed:
        raise ChangedSettingsError(
            f"{path}: expected a spatial prior of the same settings, but {', '.join(changed)} "
            "changed; set them back, or run pretrain with --fresh to start over"
        )
    active = np.zeros(len(experiment.cases.cases), bool)
    active[record[ACTIVE]] = True
    return replace(experiment, base=FittedBase(path, sha256_file(path), active))


def inputs_of_fit(experiment: Experiment) -> dict[str, Any]:
    """Return what the fit depends on, as JSON."""
    return {
        "cases": experiment.cases.digest,
        "seed": experiment.seed,
        "control.condition": list(experiment.model.control.condition),
        "lesion_load_mm3": list(experiment.model.unet.lesion_load_thresholds),
        "settings": asdict(SpatialFitSettings()),
    }


def fit_base(experiment: Experiment, store: Store) -> None:
    """Fit the spatial prior to the training cases with new lesions, and write it in one step."""
    channels = experiment.model.control.condition
    cases = [store.cases[index] for index in experiment.cases.cases]
    rows = [row for row, case in enumerate(cases) if has_new_lesions(case)]
    logger.info("spatial prior: reading %d of %d training cases", len(rows), len(cases))

    def read(row: int) -> SpatialCase:
        arrays = store.read(cases[row].index)
        inputs = inputs_of_case(cases[row], arrays, channels, store)
        return SpatialCase(inputs, new_lesions(arrays))

    with ThreadPoolExecutor() as threads:
        active = list(threads.map(read, rows))
    if not active:
        raise TrainingError(
            f"{store.path}: expected training cases with new lesions to fit a spatial prior, got "
            f"none among {len(cases)}; check the split, or set priors to load"
        )
    prior = fit_spatial_prior(active, SpatialFitSettings(), experiment.seed)
    thresholds = experiment.model.unet.lesion_load_thresholds
    voxels = [int(case.outcome.sum()) for case in active]
    base = SpatialBase(
        prior,
        voxel_quantiles(voxels, thresholds, quantiles=QUANTILES).numpy(),
        tuple(channels),
        store.spec.spacing,
    )
    record = {
        MADE_FROM: inputs_of_fit(experiment),
        ACTIVE: rows,
        TOUCHING: ratios_of_cases(active),
    }
    write_spatial_base(experiment.runs / FILE, base, record)
    logger.info("spatial prior: fitted to %d active cases", len(active))


def ratios_of_cases(cases: Sequence[SpatialCase]) -> dict[str, float]:
    """Return the touching ratios of the regions in the cases with a parcellation; see BundleConfig.

    Empty without such cases.
    """
    return touching_ratios(
        [
            regional_lesions(case.outcome, case.inputs.parcellation)
            for case in cases
            if case.inputs.parcellation is not None
        ]
    )


def ratios_of_run(experiment: Experiment) -> dict[str, float]:
    """Return the touching ratios that were measured with the spatial prior; empty without one."""
    if experiment.base is None:
        return {}
    ratios: dict[str, float] = read_record(experiment.base.path).get(TOUCHING, {})
    return ratios


def has_new_lesions(case: Case) -> bool:
    """Return whether a case has new lesions at the outcome, without reading its volumes."""
    transfer = case.lesions.get(f"{OUTCOME}/net2")
    return transfer is not None and transfer.grid_count > 0


def new_lesions(arrays: CaseArrays) -> Mask:
    """Return the new lesions of a case at the outcome, [s, h, w]."""
    net2: Bools = arrays.masks[NET2].astype(bool)
    return net2


def parcellation_of(case: Case, arrays: CaseArrays) -> LabelMap | None:
    """Return the parcellation of a case [s, h, w], None if it has none."""
    return arrays.parcellation if case.parcellation else None


def inputs_of_case(
    case: Case, arrays: CaseArrays, channels: tuple[str, ...], store: Store
) -> SpatialInputs:
    """Return what the prior reads of a case. Masks take a byte a voxel: all cases are in memory."""
    volumes = encode_case(arrays, channels=parse_channels(channels))
    shown = {
        name: volume if name.endswith("/flair") else volume.astype(np.int8)
        for name, volume in zip(channels, volumes, strict=True)
        if volume.any()
    }
    return SpatialInputs(shown, store.spec.spacing, parcellation_of(case, arrays))
