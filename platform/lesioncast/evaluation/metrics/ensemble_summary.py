"""Summaries of ensembles that an evaluation keeps after their masks are discarded."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.metrics.mask_comparison import MaskComparison
from lesioncast.forecasting.ensemble import SampledCounts


@dataclass(frozen=True, kw_only=True)
class EnsembleSummary(SampledCounts):
    """Lesion counts of an ensemble and, for the factual arm, its comparison with the outcome."""

    #: Comparison with the observed mask; None for a counterfactual arm, whose outcome is unknown.
    spatial: MaskComparison | None = None
    #: Flat indices of each sample's lesion voxels; empty where `spatial` is None.
    lesion_voxels: tuple[npt.NDArray[np.int32], ...] = ()

    def has_count_forecast(self, *, opening: bool) -> bool:
        """Return True if the count was sampled or is stated in closed form."""
        return bool(len(self.plain)) or self.expected_outcomes(opening=opening) is not None


EnsembleSummaries = Mapping[tuple[int, int], EnsembleSummary]
"""(case index, arm index) -> the summary of that ensemble."""
