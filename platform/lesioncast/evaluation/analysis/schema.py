"""The evaluation report: a tree of frozen dataclasses with `Estimate` leaves.

Each part is defined beside the function that makes it. `reporting.json_io` writes the tree to
metrics.json and reads it back.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lesioncast.evaluation.analysis.activity_by_arm import ActivityByArm
from lesioncast.evaluation.analysis.baseline_table import BaselineTable
from lesioncast.evaluation.analysis.calibration import CalibrationReport, ProbabilityCalibration
from lesioncast.evaluation.analysis.performance import VariantReport
from lesioncast.evaluation.analysis.regional import RegionalReport
from lesioncast.evaluation.analysis.scoring import headline_variant
from lesioncast.evaluation.analysis.spatial import SpatialAgreement
from lesioncast.evaluation.analysis.stated_intervals import StatedCalibration
from lesioncast.evaluation.analysis.treatment_effects import TreatmentEffects
from lesioncast.evaluation.analysis.trial_contrasts import TrialContrasts
from lesioncast.evaluation.analysis.validity.censoring import CensoringReport
from lesioncast.evaluation.analysis.validity.decision_curve import DecisionCurve
from lesioncast.evaluation.analysis.validity.participants import ParticipantFlow
from lesioncast.evaluation.analysis.validity.reliance import RelianceReport
from lesioncast.evaluation.analysis.validity.subgroups import SubgroupVariable
from lesioncast.evaluation.analysis.where import WhereReport
from lesioncast.evaluation.causal.schema import IdentifiabilityWarnings
from lesioncast.evaluation.metrics.estimate import ByMethod
from lesioncast.evaluation.paper_results import PaperResults
from lesioncast.evaluation.provenance import Provenance
from lesioncast.warning_list import texts
from storage import VisitSchedule

SCHEMA = 11


@dataclass(frozen=True)
class SplitSizes:
    """How many cases of each split were used."""

    train: int
    test: int


@dataclass(frozen=True)
class OpeningReport:
    """The morphological opening: its side in mm within a slice, and its element in voxels.

    `no_op` is true where the element is a single voxel, so that the opening removes nothing.
    `applied` is true where forecasts state lesions counted after the opening.
    """

    in_plane_mm: float
    element: tuple[int, int, int]
    no_op: bool
    applied: bool


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that one evaluation found; the content of metrics.json.

    Sections that need what an evaluation lacks, such as a parcellation, are None. Sessions have
    the trial's own labels, which `visits` lists.
    """

    schema: int
    disclaimers: tuple[str, ...]
    identifiability_warnings: IdentifiabilityWarnings | None
    provenance: Provenance | None
    bundle: str
    seed: int
    samples: int
    bootstrap_resamples: int
    arms: tuple[str, ...]
    cases: SplitSizes
    opening: OpeningReport
    methods: Mapping[str, str]
    baseline_characteristics: BaselineTable
    variants: Mapping[str, VariantReport]
    regional: RegionalReport | None
    masks: SpatialAgreement | None
    where: WhereReport | None
    probability_calibration: ByMethod[ProbabilityCalibration]
    calibration: CalibrationReport | None
    stated_calibration: StatedCalibration | None
    visits: VisitSchedule
    comparison_sessions: tuple[str, ...]
    participants: ParticipantFlow | None
    censoring: CensoringReport | None
    reliance: RelianceReport | None
    subgroups: Mapping[str, SubgroupVariable]
    decision_curve: DecisionCurve
    activity_by_arm: ActivityByArm | None
    effects: TreatmentEffects | None
    trial_contrasts: TrialContrasts
    paper_results: PaperResults

    @property
    def headline(self) -> VariantReport:
        """Return the performance by the way of counting lesions that forecasts use."""
        return self.variants[headline_variant(applied=self.opening.applied).name]

    @property
    def warning_sentences(self) -> tuple[str, ...]:
        """Return the warnings about treatments in plain words; none where they were not sought."""
        warnings = self.identifiability_warnings
        return () if warnings is None else texts(warnings.warnings)
