"""Summaries of ensembles that an evaluation keeps once the masks are discarded."""

from collections.abc import Mapping
from dataclasses import dataclass

from lesioncast.evaluation.metrics.mask_comparison import MaskComparison
from lesioncast.forecasting.ensemble import SampledCounts


@dataclass(frozen=True, kw_only=True)
class EnsembleSummary(SampledCounts):
    """What an evaluation keeps of an ensemble once its masks are let go.

    `spatial` where the observed mask is the outcome of the very arm that was drawn, and so can be
    laid beside it.
    """

    spatial: MaskComparison | None = None


EnsembleSummaries = Mapping[tuple[int, int], EnsembleSummary]
"""(case, arm) -> what is kept of the ensemble."""
