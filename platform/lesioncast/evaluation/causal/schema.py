"""Records of identifiability: leakage probes, positivity and the warnings that follow."""

from collections.abc import Mapping
from dataclasses import dataclass

from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate
from lesioncast.warning_list import CodedWarning


@dataclass(frozen=True)
class LeakageAuc:
    """Mean one-against-rest AUC of a classifier of the trial or the arm."""

    classes: tuple[str, ...]
    cases: CaseCount
    #: Classes with too few cases for the classifier.
    excluded_classes: tuple[str, ...]
    #: None if fewer than two classes remain.
    auc: Estimate | None
    auc_by_class: Mapping[str, float | None]


@dataclass(frozen=True)
class LeakageProbe:
    """Prediction of the trial or the arm from images: a shortcut that a model could use."""

    #: Predicted variable: "trial" or "arm".
    target: str
    #: Trial to which the cases are limited; None for all cases.
    within_trial: str | None
    #: Sessions whose images the classifier reads, as the trial names them.
    sessions: tuple[str, ...]
    leakage: LeakageAuc

    @property
    def group(self) -> str:
        """Label of the probe: target, trial and sessions."""
        within = f" within {self.within_trial}" if self.within_trial else ""
        return f"{self.target}{within} from {'+'.join(self.sessions)}"


@dataclass(frozen=True)
class ArmPositivity:
    """Patients who received an arm or could have received it."""

    cases: CaseCount
    #: Trials that gave the arm.
    trials: tuple[str, ...]
    #: Share of the patients of other arms whose images resemble those of this arm; None without
    #: images or with too few cases.
    overlap: float | None
    #: Share of all cases whose trial gave the arm; None if no trial is recorded.
    offered_share: float | None


@dataclass(frozen=True)
class Positivity:
    """Cases by trial and arm, and the pairs of arms that no trial gave together."""

    cases: CaseCount
    cases_without_trial: int
    cases_by_trial: Mapping[str, Mapping[str, int]]
    arms: ByGroup[ArmPositivity]
    pairs_without_common_trial: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class IdentifiabilityWarnings:
    """Leakage probes, positivity, and the warnings that every reader of a forecast needs."""

    leakage_probes: tuple[LeakageProbe, ...]
    positivity: Positivity
    warnings: tuple[CodedWarning, ...]
