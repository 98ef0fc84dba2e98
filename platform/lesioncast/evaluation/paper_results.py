"""Results that the paper reports on its own, private data: a reference, never a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.evaluation.metrics.names import AUC, AVERAGE_PRECISION, LOG_MSE

SOURCE = (
    "arXiv 2508.07006, tables 3 and 4; other data, so not comparable with the columns beside it"
)


@dataclass(frozen=True)
class PaperResults:
    """By metric, the paper's model and its baseline, each in the order of `PAPER_ARM_NAMES`."""

    source: str
    proposed: Mapping[str, tuple[float, ...]]
    baseline: Mapping[str, tuple[float, ...]]


PAPER_RESULTS = PaperResults(
    source=SOURCE,
    proposed={
        AVERAGE_PRECISION: (0.783, 0.735, 0.623, 0.647, 0.436, 0.083),
        AUC: (0.826, 0.662, 0.536, 0.705, 0.607, 0.868),
        LOG_MSE: (1.538, 1.158, 1.093, 0.842, 0.531, 0.006),
    },
    baseline={
        AVERAGE_PRECISION: (0.513, 0.577, 0.517, 0.361, 0.342, 0.019),
        AUC: (0.495, 0.505, 0.487, 0.507, 0.489, 0.509),
        LOG_MSE: (1.775, 1.620, 1.780, 0.991, 0.697, 0.010),
    },
)


@dataclass(frozen=True)
class PublishedPair:
    """One result of the paper's model, and that of its baseline."""

    proposed: float
    baseline: float


def published(metric: str, arm: str) -> PublishedPair | None:
    """Return what the paper reports on `metric` for `arm`; None where it reports nothing."""
    if metric not in PAPER_RESULTS.proposed or arm not in PAPER_ARM_NAMES:
        return None
    index = PAPER_ARM_NAMES.index(arm)
    return PublishedPair(
        PAPER_RESULTS.proposed[metric][index], PAPER_RESULTS.baseline[metric][index]
    )


@dataclass(frozen=True)
class PaperCohort:
    """One arm of the paper's table 1: patients, mean counts and percent active by session."""

    patients: int
    mean_count_current: float
    mean_count_outcome: float
    percent_active_current: float
    percent_active_outcome: float


COHORT_SOURCE = "arXiv 2508.07006, table 1 (training set of another cohort)"
COHORT = {
    "placebo": PaperCohort(267, 4.60, 3.33, 63.7, 58.1),
    "laquinimod": PaperCohort(184, 5.51, 4.49, 64.7, 57.1),
    "avonex": PaperCohort(214, 4.37, 4.37, 54.7, 51.9),
    "interferon": PaperCohort(418, 0.63, 1.59, 24.9, 33.7),
    "fumarate": PaperCohort(153, 0.60, 1.03, 19.6, 26.1),
    "ocrelizumab": PaperCohort(466, 0.07, 0.07, 3.20, 1.50),
}


@dataclass(frozen=True)
class PaperRegionalScores:
    """Scores of one method in one region (paper, table 2)."""

    balanced_accuracy: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class PaperRegion:
    """One region of the paper's table 2: its model and its baseline."""

    proposed: PaperRegionalScores
    baseline: PaperRegionalScores


REGIONAL_SOURCE = "arXiv 2508.07006, table 2; other data"
REGIONAL = {
    "white_matter": PaperRegion(
        PaperRegionalScores(0.684, 0.537, 0.629, 0.579),
        PaperRegionalScores(0.497, 0.321, 0.322, 0.320),
    ),
    "cortex": PaperRegion(
        PaperRegionalScores(0.697, 0.367, 0.562, 0.444),
        PaperRegionalScores(0.503, 0.154, 0.135, 0.143),
    ),
}
