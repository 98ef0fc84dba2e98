"""Typed records of what the data cannot show of treatments."""

from collections.abc import Mapping
from dataclasses import dataclass

from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate


@dataclass(frozen=True)
class LeakageAuc:
    """How well a classifier tells the classes apart: the mean one-against-rest AUC.

    `excluded_classes` have too few cases. `auc` is None where fewer than two classes remain.
    """

    classes: tuple[str, ...]
    cases: CaseCount
    excluded_classes: tuple[str, ...]
    auc: Estimate | None
    auc_by_class: Mapping[str, float | None]


@dataclass(frozen=True)
class LeakageProbe:
    """Whether `target`, the trial or the arm, can be told from the images of `sessions`.

    `within_trial` names the trial to which the cases are limited; None for all cases.
    """

    target: str
    within_trial: str | None
    sessions: tuple[str, ...]
    leakage: LeakageAuc

    @property
    def group(self) -> str:
        """Return target, trial and sessions in one label."""
        within = f" within {self.within_trial}" if self.within_trial else ""
        return f"{self.target}{within} from {'+'.join(self.sessions)}"


@dataclass(frozen=True)
class ArmPositivity:
    """Who could have received an arm.

    `trials` gave the arm. `overlap` is the share of the patients of other arms who look like
    patients of this arm; None without images. `offered_share` is the share of all cases whose trial
    gave the arm; None where no trial is named.
    """

    cases: CaseCount
    trials: tuple[str, ...]
    overlap: float | None
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
    """Leakage probes, positivity, and the sentences that follow from them for every reader."""

    leakage_probes: tuple[LeakageProbe, ...]
    positivity: Positivity
    sentences: tuple[str, ...]
