"""Tables of the outcomes and features of a store's cases.

Each case is measured once. Its lesions can then be counted with or without the opening.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.diffusion.covariates import covariate_features
from lesioncast.evaluation.features.image_features import CaseMeasurements, measure_case
from lesioncast.imaging.covariates import Covariate, encode_covariates
from lesioncast.imaging.regions import REGIONS
from storage import Case, Location, open_store
from storage.layout import OUTCOME

Chunk = tuple[int, ...]
"""Indices of the cases that one task measures."""
CASES_PER_CHUNK = 64


@dataclass(frozen=True)
class EvaluationCases:
    """Cases with an observed outcome, one a row."""

    subjects: tuple[str, ...]
    #: Index of the arm that each case received, [n].
    arm: Ints
    #: Values [n, feature] of `IMAGE_FEATURES`; NaN where a channel is missing.
    image_features: Floats
    #: Number of NET2 lesions at outcome, [n].
    count: Floats
    #: Encoded covariates [n, feature]; None if the evaluation uses none.
    covariates: Floats | None = None

    @property
    def active(self) -> Bools:
        """True for each case with at least one lesion, [n]."""
        return self.count > 0


@dataclass(frozen=True)
class OutcomeTable:
    """Cases with an observed outcome, one a row, with both ways of counting their lesions."""

    #: Index of each case in the store.
    case: tuple[int, ...]
    subjects: tuple[str, ...]
    #: Index of the arm that each case received, [n].
    arm: Ints
    #: Values [n, feature] of `IMAGE_FEATURES`; NaN where a channel is missing.
    image_features: Floats
    #: Number of NET2 lesions at outcome without the opening, [n].
    plain: Floats
    #: Number of NET2 lesions at outcome after the opening, [n].
    opened: Floats
    #: Number of NET2 lesions at the current session, [n]; NaN if they were not observed.
    net2_count_current: Floats
    #: 1 if a lesion at outcome lies in the region, else 0, [n, region]; NaN if unknown.
    regions: Floats
    #: Trial in which each case was randomised; None if it is not recorded.
    trial: tuple[str | None, ...]
    #: Encoded covariates [n, feature]; None if the evaluation uses none.
    covariates: Floats | None = None
    #: Values [n, feature] of `APPEARANCE_FEATURES`; None if they were not measured.
    appearance: Floats | None = None
    #: Flat indices of the NET2 voxels at outcome of each case; empty if they were not measured.
    net2_voxels: tuple[npt.NDArray[np.int32], ...] = ()

    def cases(self, *, opening: bool) -> EvaluationCases:
        """Return the cases with lesions counted after the opening or without it."""
        count = self.opened if opening else self.plain
        return EvaluationCases(self.subjects, self.arm, self.image_features, count, self.covariates)


def observed_regions(measured: Sequence[CaseMeasurements]) -> Floats:
    """Return `OutcomeTable.regions` of the measured cases, [n, region]."""
    unknown = np.full(len(REGIONS), np.nan)
    rows = [unknown if entry.regions is None else entry.regions for entry in measured]
    return np.array(rows, np.float64).reshape(len(measured), len(REGIONS))


def net2_counts_current(measured: Sequence[CaseMeasurements]) -> Floats:
    """Return `OutcomeTable.net2_count_current` of the measured cases, [n]."""
    counts = [entry.net2_count_current for entry in measured]
    return np.array([np.nan if count is None else count for count in counts], np.float64)


def cases_with_outcome(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with a known arm and an observed NET2 mask at outcome.

    A case all of whose new lesions were lost on the way to the slab has no outcome.
    """
    return [case for case in cases if case.arm is not None and case.has_outcome]


def source_lesions(cases: Sequence[Case]) -> Floats:
    """Return the number of NET2 lesions at outcome in each case's source file, [n].

    Scores use the lesions on the slab. The number is NaN in a store that does not record it.
    """
    transfers = [case.lesions.get(f"{OUTCOME}/net2") for case in cases]
    counts = [np.nan if transfer is None else transfer.source_count for transfer in transfers]
    return np.array(counts, np.float64)


def chunk_cases(cases: Sequence[Case]) -> list[Chunk]:
    """Divide the indices of the cases into chunks, each the work of one task."""
    return [
        tuple(case.index for case in cases[start : start + CASES_PER_CHUNK])
        for start in range(0, len(cases), CASES_PER_CHUNK)
    ]


def build_measurer(store: Location) -> Callable[[Chunk], list[CaseMeasurements]]:
    """Open a store and return a function that measures its cases; a Ray actor keeps it."""
    opened = open_store(store)

    def measure_chunk(chunk: Chunk) -> list[CaseMeasurements]:
        return [measure_case(index, opened.read(index), opened.spec.spacing) for index in chunk]

    return measure_chunk


def outcome_table(
    cases: Sequence[Case],
    measured: Sequence[CaseMeasurements],
    covariates: Sequence[Covariate] = (),
) -> OutcomeTable:
    """Collect the measurements of `cases`, which all need an observed outcome, in one table."""
    by_case = {entry.case: entry for entry in measured}
    rows = [by_case[case.index] for case in cases]
    lesions = [entry.outcome for entry in rows if entry.outcome is not None]
    return OutcomeTable(
        case=tuple(case.index for case in cases),
        subjects=tuple(case.subject for case in cases),
        arm=np.array([case.arm_index for case in cases], np.int64),
        image_features=np.array([entry.image_features for entry in rows], np.float64),
        plain=np.array([counts.plain for counts in lesions], np.float64),
        opened=np.array([counts.opened for counts in lesions], np.float64),
        net2_count_current=net2_counts_current(rows),
        regions=observed_regions(rows),
        trial=tuple(case.trial for case in cases),
        covariates=covariate_matrix(covariates, cases) if covariates else None,
        appearance=np.array([entry.appearance for entry in rows], np.float64),
        net2_voxels=tuple(entry.net2_voxels for entry in rows if entry.net2_voxels is not None),
    )


def covariate_matrix(covariates: Sequence[Covariate], cases: Sequence[Case]) -> Floats:
    """Encode covariates as a network receives them: values and presence flags, [n, feature]."""
    values = np.stack([encode_covariates(covariates, case) for case in cases])
    features = covariate_features(torch.from_numpy(values), covariates)
    return features.numpy().astype(np.float64)
