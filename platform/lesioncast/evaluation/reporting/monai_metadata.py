"""The model card of a published bundle, as the metadata.json of MONAI's bundles.

Its keys are those of the schema at `SCHEMA_URL`, and some of lesioncast's own after them: licence,
digest, seed, commands and the evaluation. Every figure is read from the bundle or its evaluation.
The manifest of the bundle does not list the file. The file names its bundle instead.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lesioncast.bundle.description import BundleDescription
from lesioncast.bundle.json_files import read_json, write_json
from lesioncast.errors import BundleError
from lesioncast.evaluation.analysis.performance import POOLED
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.names import AUC, LOG_MSE
from lesioncast.forecasting.disclaimers import RESEARCH_USE, TRAINED_ON_SIMULATED
from lesioncast.imaging.channels import OUTCOME
from storage.version import installed_version

METADATA = "metadata.json"
SCHEMA_URL = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
PACKAGES = ("nibabel", "ray", "safetensors", "scikit-image", "scipy", "zarr")
ABSOLUTE_PATH = re.compile(r"(?<![^\s'\"=(])/[^\s'\"()/]+(?:/[^\s'\"()/]+)+")
AUTHORS = "The lesioncast maintainers"
LICENCE = "Apache-2.0"
REFERENCES = (
    "Favero et al. Spatio-Temporal Conditional Diffusion Models for Forecasting Future Multiple "
    "Sclerosis Lesion Masks Conditioned on Treatments. arXiv:2508.07006, 2025.",
)


@dataclass(frozen=True)
class TensorFormat:
    """What an input or output of the networks is, in MONAI's terms."""

    type: str
    format: str
    modality: str
    num_channels: int
    spatial_shape: tuple[int, ...]
    dtype: str
    value_range: tuple[float, ...]
    is_patch_data: bool
    channel_def: Mapping[str, str]


@dataclass(frozen=True)
class NetworkDataFormat:
    """The inputs and outputs of the networks, by name."""

    inputs: Mapping[str, TensorFormat]
    outputs: Mapping[str, TensorFormat]


@dataclass(frozen=True)
class EvaluationRecord:
    """The evaluation behind `eval_metrics`.

    `intervals` has the 95 % bootstrap interval of each metric that has one. `store` is the digest
    of the trial, on which the bundle was neither trained nor calibrated.
    """

    test_cases: int
    active: int
    samples: int
    simulated: bool
    store: str
    date: str
    code: str
    command: str
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Metadata:
    """The content of metadata.json."""

    schema: str
    version: str
    changelog: Mapping[str, str]
    monai_version: str
    pytorch_version: str
    numpy_version: str
    required_packages_version: Mapping[str, str]
    task: str
    description: str
    authors: str
    copyright: str
    data_source: str
    data_type: str
    eval_metrics: Mapping[str, float]
    intended_use: str
    references: tuple[str, ...]
    network_data_format: NetworkDataFormat
    license: str
    bundle: str
    seed: int
    stages: Mapping[str, int]
    commands: tuple[str, ...]
    evaluation: EvaluationRecord


@dataclass(frozen=True)
class Release:
    """A version of a published bundle: the changes of it and of those before, and how it was made.

    `seed` and `stages` (steps by stage) are those of training, `data` describes its cases.
    """

    version: str
    changelog: Mapping[str, str]
    data: str
    seed: int
    stages: Mapping[str, int]
    commands: tuple[str, ...]


def metadata_of(bundle: BundleDescription, report: EvaluationReport, release: Release) -> Metadata:
    """Return the metadata of a bundle whose evaluation is `report`.

    Raise BundleError if the report does not say which trial it is about.
    """
    simulated = f" {TRAINED_ON_SIMULATED}" if bundle.config.simulated else ""
    figures = dict(_figures(report))
    return Metadata(
        schema=SCHEMA_URL,
        version=release.version,
        changelog=release.changelog,
        monai_version="not used",
        pytorch_version=installed_version("torch"),
        numpy_version=installed_version("numpy"),
        required_packages_version={name: installed_version(name) for name in PACKAGES},
        task=f"Forecast new and enlarging T2 lesions of multiple sclerosis at "
        f"{bundle.config.visits.describe(OUTCOME)} under each treatment arm",
        description="A ControlNet steers a diffusion UNet by a patient's images and the treatment "
        "arm, after arXiv 2508.07006. Samples are masks of new and enlarging T2 lesions."
        f"{simulated}",
        authors=AUTHORS,
        copyright=f"Copyright (c) {AUTHORS}",
        data_source=release.data,
        data_type="NIfTI",
        eval_metrics={name: value for name, value, _ in _rounded(figures)},
        intended_use=f"{RESEARCH_USE}{simulated}",
        references=REFERENCES,
        network_data_format=_network_data_format(bundle),
        license=LICENCE,
        bundle=bundle.digest,
        seed=release.seed,
        stages=release.stages,
        commands=release.commands,
        evaluation=_evaluation_record(bundle, report, figures),
    )


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write the metadata into the folder of its bundle."""
    write_json(folder / METADATA, asdict(metadata))


def read_metadata(folder: Path) -> Metadata:
    """Read the metadata in the folder of a bundle. Raise BundleError if it cannot be used."""
    path = folder / METADATA
    try:
        return TypeAdapter(Metadata).validate_python(read_json(path))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: expected the metadata of a published bundle, got {error}; "
            "run `lesioncast publish` again"
        ) from error


def shorten_paths(text: str) -> str:
    """Return the text with at most the last two parts of each absolute path.

    The first two parts, which may name a user, go in any case, unless there are no others.
    """

    def shorten(path: re.Match[str]) -> str:
        parts = path[0].split("/")[1:]
        return "/".join((parts[2:] or parts[-1:])[-2:])

    return ABSOLUTE_PATH.sub(shorten, text)


def _network_data_format(bundle: BundleDescription) -> NetworkDataFormat:
    model, slab = bundle.config.model, bundle.config.slab
    image = TensorFormat(
        type="image",
        format="magnitude",
        modality="MR",
        num_channels=len(model.control.condition),
        spatial_shape=slab,
        dtype="float32",
        value_range=(-1.0, 1.0),
        is_patch_data=False,
        channel_def=_numbered(model.control.condition),
    )
    inputs = {"image": image, "arm": _table("classes", model.arms)}
    if model.covariates:
        names = [covariate.name for covariate in model.covariates]
        inputs["covariates"] = _table("magnitude", names)
    pred = TensorFormat(
        type="image",
        format="segmentation",
        modality="MR",
        num_channels=1,
        spatial_shape=slab,
        dtype="bool",
        value_range=(0.0, 1.0),
        is_patch_data=False,
        channel_def={"0": "new and enlarging T2 lesions, one sample"},
    )
    return NetworkDataFormat(inputs, {"pred": pred})


def _table(kind: str, names: Sequence[str]) -> TensorFormat:
    """Return the format of one value for each name, without a place in space."""
    return TensorFormat(
        type="tuples",
        format=kind,
        modality="n/a",
        num_channels=len(names),
        spatial_shape=(),
        dtype="float32",
        value_range=(),
        is_patch_data=False,
        channel_def=_numbered(names),
    )


def _numbered(names: Sequence[str]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(names)}


def _evaluation_record(
    bundle: BundleDescription, report: EvaluationReport, figures: Mapping[str, Estimate]
) -> EvaluationRecord:
    origin = report.provenance
    if origin is None:
        raise BundleError(
            f"{bundle.path}: expected an evaluation with its provenance, got one without; run "
            "jobs/evaluate.py again"
        )
    return EvaluationRecord(
        test_cases=report.cases.test,
        active=report.headline.activity[POOLED].positives,
        samples=report.samples,
        simulated=bundle.config.simulated,
        store=origin.store,
        date=origin.date,
        code=origin.code,
        command=shorten_paths(origin.command),
        intervals={name: bounds for name, _, bounds in _rounded(figures) if bounds is not None},
    )


def _figures(report: EvaluationReport) -> Iterator[tuple[str, Estimate]]:
    """Yield name and value of each figure: who, how many, where, and coverage of the intervals."""
    pooled = report.headline
    for key, activity in pooled.activity[POOLED].methods.items():
        yield f"{AUC}.{key}", activity.auc
        yield f"brier.{key}", activity.brier
    for key, count in pooled.count[POOLED].methods.items():
        yield f"{LOG_MSE}.{key}", count.log_mse
    if report.where is not None:
        for key, scores in report.where.maps.items():
            yield f"nats_over_atlas.{key}", scores.nats_case
            yield f"in_brain_auc.{key}", scores.auc
    if report.stated_calibration is not None:
        for level in report.stated_calibration.levels:
            yield f"coverage.{level.group}", level.coverage


def _rounded(
    figures: Mapping[str, Estimate],
) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Yield name, value and interval of each defined figure, to four decimals."""
    for name, figure in figures.items():
        if figure.value is None:
            continue
        bounds = figure.with_interval
        interval = None if bounds is None else (round(bounds.low, 4), round(bounds.high, 4))
        yield name, round(figure.value, 4), interval
