"""Outcomes and scalars of a store's cases, measured once and counted in either way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lesioncast.diffusion.covariates import covariate_features
from lesioncast.evaluation.features.image_features import CaseMeasurements, measure_case
from lesioncast.imaging.channels import CHANNELS, SESSIONS
from lesioncast.imaging.covariates import Covariate, encode_covariates
from lesioncast.imaging.regions import REGIONS
from storage import Case, Location, open_store

Chunk = tuple[int, ...]
CASES_PER_CHUNK = 64


@dataclass(frozen=True)
class EvaluationCases:
    """Cases with an outcome, in rows: arm index [n], scalars [n, scalar], true lesions [n], and
    covariates as features [n, feature] where the evaluation asks for any."""

    subjects: tuple[str, ...]
    arm: npt.NDArray[np.int64]
    image_features: npt.NDArray[np.float64]
    count: npt.NDArray[np.float64]
    covariates: npt.NDArray[np.float64] | None = None

    @property
    def active(self) -> npt.NDArray[np.bool_]:
        return self.count > 0


@dataclass(frozen=True)
class OutcomeTable:
    """Cases in rows, with their true lesions at w096 counted as drawn and after the opening.

    `earlier` [n] are new lesions at w048, `regions` [n, region] is 1 where a lesion at w096 lies in
    the region, both NaN where not observed; `trial` [n] is what a case was randomised in; `looks`
    [n, look] says how their images look.
    """

    case: tuple[int, ...]
    subjects: tuple[str, ...]
    arm: npt.NDArray[np.int64]
    image_features: npt.NDArray[np.float64]
    plain: npt.NDArray[np.float64]
    opened: npt.NDArray[np.float64]
    net2_count_w048: npt.NDArray[np.float64]
    regions: npt.NDArray[np.float64]
    trial: tuple[str | None, ...]
    covariates: npt.NDArray[np.float64] | None = None
    appearance: npt.NDArray[np.float64] | None = None

    def cases(self, *, opening: bool) -> EvaluationCases:
        """With the true count taken one way or the other."""
        count = self.opened if opening else self.plain
        return EvaluationCases(self.subjects, self.arm, self.image_features, count, self.covariates)


def observed_regions(found: Sequence[CaseMeasurements]) -> npt.NDArray[np.float64]:
    """`Outcomes.regions` of what was measured, [n, region]."""
    unknown = np.full(len(REGIONS), np.nan)
    rows = [unknown if each.regions is None else each.regions for each in found]
    return np.array(rows, np.float64).reshape(len(found), len(REGIONS))


def net2_counts_w048(found: Sequence[CaseMeasurements]) -> npt.NDArray[np.float64]:
    """`Outcomes.earlier` of what was measured, [n]."""
    rows = [np.nan if each.net2_count_w048 is None else each.net2_count_w048 for each in found]
    return np.array(rows, np.float64)


def cases_with_outcome(cases: Sequence[Case]) -> list[Case]:
    """Those whose arm and whose lesions at w096 are known."""
    row, column = SESSIONS.index("w096"), CHANNELS.index("net2")
    return [case for case in cases if case.arm is not None and case.present[row, column]]


def chunk_cases(cases: Sequence[Case]) -> list[Chunk]:
    """Case indices in pieces of one task."""
    return [
        tuple(case.index for case in cases[start : start + CASES_PER_CHUNK])
        for start in range(0, len(cases), CASES_PER_CHUNK)
    ]


def build_measurer(store: Location) -> Callable[[Chunk], list[CaseMeasurements]]:
    """What a Ray actor holds: an open store, from which it measures cases."""
    opened = open_store(store)

    def measure_chunk(chunk: Chunk) -> list[CaseMeasurements]:
        return [measure_case(index, opened.read(index), opened.spec.spacing) for index in chunk]

    return measure_chunk


def outcome_table(
    cases: Sequence[Case],
    measured: Sequence[CaseMeasurements],
    covariates: Sequence[Covariate] = (),
) -> OutcomeTable:
    """The table of `cases`, each with its entry of `measured`, which needs an outcome."""
    by_case = {entry.case: entry for entry in measured}
    rows = [by_case[case.index] for case in cases]
    lesions = [entry.outcome for entry in rows if entry.outcome is not None]
    return OutcomeTable(
        case=tuple(case.index for case in cases),
        subjects=tuple(case.subject for case in cases),
        arm=np.array([case.arm_index for case in cases], np.int64),
        image_features=np.array([entry.image_features for entry in rows], np.float64),
        plain=np.array([found.plain for found in lesions], np.float64),
        opened=np.array([found.opened for found in lesions], np.float64),
        net2_count_w048=net2_counts_w048(rows),
        regions=observed_regions(rows),
        trial=tuple(case.trial for case in cases),
        covariates=covariate_matrix(covariates, cases) if covariates else None,
        appearance=np.array([entry.appearance for entry in rows], np.float64),
    )


def covariate_matrix(
    covariates: Sequence[Covariate], cases: Sequence[Case]
) -> npt.NDArray[np.float64]:
    """What a network would see of the cases, [case, feature]: values and whether they are known."""
    values = np.stack([encode_covariates(covariates, case) for case in cases])
    features = covariate_features(torch.from_numpy(values), covariates)
    return features.numpy().astype(np.float64)
