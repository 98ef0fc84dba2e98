"""The summary of one subject's forecast: every arm, and every arm against a reference arm.

`write_summary` is the only writer of its JSON form and `read_summary` the only reader.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from lesioncast.bundle.calibration import BundleCalibration
from lesioncast.errors import ForecastError
from lesioncast.forecasting.disclaimers import POSITIVITY, PREDICTED, RESEARCH_USE
from lesioncast.forecasting.ensemble import (
    Ensemble,
    active_fraction,
)
from lesioncast.forecasting.monte_carlo import active_fraction_interval, mean_error
from lesioncast.forecasting.output.calibrated import (
    CalibratedArm,
    CalibrationSummary,
    calibrated_arm,
    summarise_calibration,
)
from lesioncast.forecasting.output.members import MembersSummary, summarise_members
from lesioncast.forecasting.output.record import Record as _Record
from lesioncast.forecasting.output.typicality import UNKNOWN_TYPICALITY, TypicalitySummary
from lesioncast.forecasting.regional_risk import regional_risks
from lesioncast.imaging.channels import BASELINE, CURRENT, OUTCOME
from lesioncast.imaging.covariates import Covariate
from lesioncast.imaging.intervals import IntervalRanges
from lesioncast.imaging.lesions import opening_element
from lesioncast.imaging.typicality import TypicalityReference
from lesioncast.warning_list import CodedWarning
from storage import VisitSchedule
from storage.export.bids_derivative import write_json

SCHEMA = 7
MapKind = Literal["closed form", "share of samples"]
"""How the probability at each voxel was computed."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class RunProvenance:
    """Facts that all forecasts of a run share."""

    #: Digest of the bundle.
    bundle: str
    #: Seed of the run.
    seed: int
    #: Sentences about the data, the sessions and the sampling.
    notes: tuple[str, ...] = ()
    #: Sessions whose images the model sees.
    sessions: tuple[str, ...] = (BASELINE, CURRENT)
    #: Channels that the model sees where a subject has them, such as w048/flair.
    condition: tuple[str, ...] = ()
    #: Covariates that the model sees.
    covariates: tuple[Covariate, ...] = ()
    #: Sentences of the bundle's evaluation on what its data cannot identify.
    identifiability_warnings: tuple[CodedWarning, ...] = ()
    #: What stands before all other warnings: that the bundle never saw a real patient.
    first_warnings: tuple[CodedWarning, ...] = ()
    #: What patients are compared with; None if the bundle has no reference.
    typicality: TypicalityReference | None = None
    #: By how much mean P(active) missed the truth in the bundle's evaluation, by arm, if known.
    p_active_errors: Mapping[str, float] = field(default_factory=dict)
    #: Labels and nominal days of the sessions that the bundle was trained on.
    visits: VisitSchedule = VisitSchedule()
    #: Share of the training cases whose images were cleared outside a brain mask, if known.
    brain_mask_share: float | None = None
    #: Days between the sessions of the bundle's training cases.
    intervals: IntervalRanges = IntervalRanges()
    #: How many times each region's share of lesions exceeds its share of lesion voxels.
    touching_ratios: Mapping[str, float] = field(default_factory=dict)
    #: Calibration of the bundle; None if it has none.
    calibration: BundleCalibration | None = None

    @property
    def target(self) -> str:
        """Return in words what is forecast."""
        outcome, current = map(self.visits.label, (OUTCOME, CURRENT))
        return f"new and enlarging T2 lesions at {outcome} since {current}"


@dataclass(frozen=True)
class SubjectInfo:
    """Facts about the subject of a forecast."""

    #: BIDS name, such as sub-0001.
    name: str
    #: Arm received, where it is known.
    arm: str | None
    #: Number of lesions observed at outcome, where they are known.
    observed_lesions: int | None
    #: Whether each covariate of the model is known of this subject, by its name.
    covariates: Mapping[str, bool] = field(default_factory=dict)
    #: Digest of the case in the store.
    case_digest: str = ""
    #: Sentences about this subject alone.
    notes: tuple[str, ...] = ()
    #: How typical the subject is of the training.
    typicality: TypicalitySummary = UNKNOWN_TYPICALITY
    #: Warnings about this subject alone, the gravest first.
    warnings: tuple[CodedWarning, ...] = ()
    #: FreeSurfer ids [s, h, w], in whose regions risks are computed; None without a parcellation.
    parcellation: npt.NDArray[np.integer] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class ActiveProbability(_Record):
    """The best estimate of P(active), with a 95 % interval where there is one.

    An `exact` value is computed by the prognostic prior before sampling: `low` and `high` are None,
    because nothing was sampled. Otherwise it is the active fraction with its interval.
    """

    value: float
    low: float | None
    high: float | None
    exact: bool


@dataclass(frozen=True, kw_only=True)
class ActiveFraction(_Record):
    """Share of samples with at least one lesion, and the 95 % interval of its Monte Carlo error."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LesionCountSummary(_Record):
    """Distribution of the lesion count over the samples.

    `expected` is the expectation that the prognostic prior computes before sampling, None for
    models that only sample. `sample_quantiles` are plain quantiles of the samples, named by their
    level, such as 0.05; nothing says how often patients lie between them.
    """

    mean: float
    expected: float | None
    mc_error: float
    sd: float
    sample_quantiles: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class VolumeSummary(_Record):
    """Lesion volume over the samples with its Monte Carlo standard error.

    `expected` is that of the map in closed form, None for maps that are shares of samples.
    """

    mean: float
    mc_error: float
    expected: float | None


@dataclass(frozen=True, kw_only=True)
class Difference(_Record):
    """Arm minus reference arm, with its Monte Carlo standard error."""

    value: float
    mc_error: float


@dataclass(frozen=True, kw_only=True)
class LesionCountDifference(Difference):
    """Difference in the lesion count; `expected` is that of the two expectations, if any."""

    expected: float | None


@dataclass(frozen=True, kw_only=True)
class ArmDifference(_Record):
    """Arm minus reference arm on the same seeds."""

    p_active: Difference
    count: LesionCountDifference


@dataclass(frozen=True, kw_only=True)
class ArmSummary(_Record):
    """Forecast of one subject under one arm.

    `count_mean` and `count_mean_after_opening` are mean lesion counts without and with the 5 mm
    opening, whichever of them `count` is about. `regions` are the probabilities of a lesion in each
    region in closed form; empty where they are known from samples alone. `calibrated` is None for a
    bundle without calibration, after the opening, and for images that no case of the calibration
    cohort had. `members` is None for a bundle with one member and after the opening.
    """

    received: bool
    p_active: ActiveProbability
    active_fraction: ActiveFraction
    count: LesionCountSummary
    count_mean: float
    count_mean_after_opening: float
    volume_mm3: VolumeSummary
    regions: Mapping[str, float]
    calibrated: CalibratedArm | None
    minus_reference: ArmDifference
    members: MembersSummary | None = None


@dataclass(frozen=True, kw_only=True)
class OpeningSummary(_Record):
    """The opening: its structuring element in voxels, and whether it was applied."""

    element: tuple[int, ...]
    applied: bool


@dataclass(frozen=True, kw_only=True)
class CovariateUse(_Record):
    """Names of the model's covariates that are known of the subject, and of those that are not."""

    used: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ForecastSummary(_Record):
    """Forecast of one subject under every arm, with all that is needed to draw it again."""

    schema: int
    subject: str
    target: str
    visits: VisitSchedule
    disclaimers: tuple[str, ...]
    warnings: tuple[CodedWarning, ...]
    notes: tuple[str, ...]
    typicality: TypicalitySummary
    bundle: str
    case: str
    sessions: tuple[str, ...]
    seed: int
    samples: int
    seeds: tuple[int, ...]
    map: MapKind
    opening: OpeningSummary
    received_arm: str | None
    observed_lesions: int | None
    covariates: CovariateUse
    calibration: CalibrationSummary | None
    reference_arm: str
    arms: Mapping[str, ArmSummary]


_ADAPTER = TypeAdapter(ForecastSummary)


def write_summary(path: Path, summary: ForecastSummary) -> None:
    """Write the summary as JSON, whole or not at all."""
    write_json(path, asdict(summary))


def read_summary(path: Path) -> ForecastSummary:
    """Read a summary. Raise ForecastError if the file has another form, such as an older one."""
    try:
        summary = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ForecastError(
            f"{path}: expected a forecast's summary in schema {SCHEMA}, got {where}: "
            f"{first['msg']}; forecast the subject again"
        ) from error
    if summary.schema != SCHEMA:
        raise ForecastError(
            f"{path}: expected a forecast's summary in schema {SCHEMA}, got schema "
            f"{summary.schema}; forecast the subject again"
        )
    return summary


def summarise(
    subject: SubjectInfo,
    by_arm: Mapping[str, Ensemble],
    *,
    reference: str,
    opening: bool,
    spacing: Sequence[float],
    provenance: RunProvenance,
) -> ForecastSummary:
    """Summarise one subject's forecast; `by_arm` holds ensembles on the same seeds."""
    seeds = by_arm[reference].seeds
    presence = subject.covariates
    return ForecastSummary(
        schema=SCHEMA,
        subject=subject.name,
        target=provenance.target,
        disclaimers=(PREDICTED, RESEARCH_USE, POSITIVITY),
        warnings=all_warnings(subject, provenance),
        notes=(*provenance.notes, *subject.notes),
        typicality=subject.typicality,
        bundle=provenance.bundle,
        case=subject.case_digest,
        visits=provenance.visits,
        sessions=tuple(provenance.sessions),
        seed=provenance.seed,
        samples=len(seeds),
        seeds=seeds,
        map=map_kind(by_arm[reference]),
        opening=OpeningSummary(element=tuple(opening_element(spacing)), applied=opening),
        received_arm=subject.arm,
        observed_lesions=subject.observed_lesions,
        covariates=CovariateUse(
            used=tuple(name for name, known in presence.items() if known),
            missing=tuple(name for name, known in presence.items() if not known),
        ),
        calibration=summarise_calibration(
            provenance.calibration, by_arm[reference].expected_outcomes(opening=opening)
        ),
        reference_arm=reference,
        arms={
            arm: arm_summary(
                ensemble,
                by_arm[reference],
                received=arm == subject.arm,
                opening=opening,
                voxel_mm3=math.prod(spacing),
                regions=regional_risks(
                    ensemble, subject.parcellation, provenance.touching_ratios, opening=opening
                ),
                calibrated=calibrated_arm(
                    provenance.calibration, ensemble.expected_outcomes(opening=opening), arm
                ),
            )
            for arm, ensemble in by_arm.items()
        },
    )


def all_warnings(subject: SubjectInfo, provenance: RunProvenance) -> tuple[CodedWarning, ...]:
    """Return the warnings of a subject's forecast, first those that concern everything else."""
    return (
        *provenance.first_warnings,
        *subject.warnings,
        *provenance.identifiability_warnings,
    )


def map_kind(ensemble: Ensemble) -> MapKind:
    """Return how the probability map of an ensemble was computed."""
    return "share of samples" if ensemble.closed_form_map is None else "closed form"


def arm_summary(
    ensemble: Ensemble,
    reference: Ensemble,
    *,
    received: bool,
    opening: bool,
    voxel_mm3: float = 1.0,
    regions: Mapping[str, float] | None = None,
    calibrated: CalibratedArm | None = None,
) -> ArmSummary:
    """Summarise one arm, also against the ensemble of the reference arm.

    `regions` are its regional risks in closed form.
    """
    voxels = ensemble.expected_voxels(opening=opening)
    counts = ensemble.counts(opening=opening)
    expected = ensemble.expected_outcomes(opening=opening)
    exact, share = expected is not None, active_fraction(counts)
    low, high = active_fraction_interval(ensemble, opening=opening)
    seeds, edges = ensemble.seeds, ensemble.load_edges
    quantiles = np.quantile(counts, QUANTILES, method="inverted_cdf")
    return ArmSummary(
        received=received,
        p_active=ActiveProbability(
            value=ensemble.p_active(opening=opening),
            low=None if exact else low,
            high=None if exact else high,
            exact=exact,
        ),
        active_fraction=ActiveFraction(value=share, low=low, high=high),
        count=LesionCountSummary(
            mean=float(counts.mean()),
            expected=None if expected is None else expected.lesions,
            mc_error=mean_error(counts, seeds, edges),
            sd=float(counts.std(ddof=1)),
            sample_quantiles={
                f"{level:.2f}": int(value)
                for level, value in zip(QUANTILES, quantiles, strict=True)
            },
        ),
        count_mean=float(ensemble.plain.mean()),
        count_mean_after_opening=float(ensemble.opened.mean()),
        volume_mm3=VolumeSummary(
            mean=float(ensemble.volume.mean()),
            mc_error=mean_error(ensemble.volume, seeds, edges),
            expected=None if voxels is None else voxels * voxel_mm3,
        ),
        regions=dict(regions or {}),
        calibrated=calibrated,
        minus_reference=arm_difference(ensemble, reference, opening=opening),
        members=summarise_members(expected),
    )


def arm_difference(ensemble: Ensemble, reference: Ensemble, *, opening: bool) -> ArmDifference:
    """Compare an arm with the reference arm on the same seeds.

    Raise ValueError if the two ensembles were drawn on different seeds: their difference would lose
    the common random numbers.
    """
    if ensemble.seeds != reference.seeds:
        raise ValueError(
            f"expected both arms on the same seeds, got {len(ensemble.seeds)} and "
            f"{len(reference.seeds)} that differ; draw them in one forecast"
        )
    edges = (*ensemble.load_edges, *reference.load_edges)
    counts, reference_counts = ensemble.counts(opening=opening), reference.counts(opening=opening)
    difference = counts - reference_counts
    expected = ensemble.expected_outcomes(opening=opening)
    expected_of_reference = reference.expected_outcomes(opening=opening)
    if expected is None or expected_of_reference is None:
        active = (counts > 0).astype(np.float64) - (reference_counts > 0)
        p_active = Difference(
            value=float(active.mean()), mc_error=mean_error(active, ensemble.seeds, edges)
        )
        expected_difference = None
    else:
        p_active = Difference(value=expected.p_active - expected_of_reference.p_active, mc_error=0)
        expected_difference = expected.lesions - expected_of_reference.lesions
    return ArmDifference(
        p_active=p_active,
        count=LesionCountDifference(
            value=float(difference.mean()),
            mc_error=mean_error(difference, ensemble.seeds, edges),
            expected=expected_difference,
        ),
    )
