"""Probabilities that a brain region will have a new lesion: of the forecast and of baselines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.baselines.baselines import (
    RegressionBaseline,
    arm_statistics,
    fit_regression_baseline,
    monte_carlo,
)
from lesioncast.evaluation.baselines.methods import ARM_RATE, REGRESSION, SAMPLED
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary

CLOSED_FORM = "closed_form"


@dataclass(frozen=True)
class RegionalPrediction:
    """The probability of one method that a region has a lesion, or what it draws.

    `probability` [run, n] is of the scored cases. `reference` [m] is of the cases that give the
    threshold; None for a method that draws yes or no, 1 or 0, in each run.
    """

    key: str
    label: str
    probability: Floats
    reference: Floats | None = None


@dataclass(frozen=True)
class SampledCases:
    """Cases whose regions are known, in truth and in every sample.

    They are the rows [n] of `table`. `present` [k, m, region] is True where a sample has a lesion
    in the region.
    """

    table: OutcomeTable
    rows: Bools
    present: Bools

    @property
    def share(self) -> Floats:
        """Return the share of samples with a lesion in each region, [m, region]."""
        return np.asarray(self.present.mean(axis=0), np.float64)


def sampled_cases(table: OutcomeTable, summaries: Sequence[EnsembleSummary]) -> SampledCases | None:
    """Return the cases of `table` with known regions; None without any."""
    regions = [None if one.spatial is None else one.spatial.regions for one in summaries]
    has_samples = np.array([one is not None for one in regions], bool)
    rows = has_samples & ~np.isnan(table.regions).any(axis=1)
    if not rows.any():
        return None
    present = np.stack([one for one in regions if one is not None], axis=1)
    return SampledCases(table, rows, present[:, rows[has_samples]])


@dataclass(frozen=True)
class RegionMethods:
    """Methods for the region at `index`.

    Baselines are fitted to `train`, `scored` cases are predicted, and `reference` cases give the
    thresholds. `closed_form` [m, region] are the risks that forecasts of the scored cases state
    without samples, None where they state none.
    """

    train: OutcomeTable
    scored: SampledCases
    reference: SampledCases
    index: int
    closed_form: Floats | None = None

    @property
    def training_share(self) -> float | None:
        """Return the share of positive training cases; None where no region is known."""
        _, observed = self._training
        return float(observed.mean()) if len(observed) else None

    @property
    def _training(self) -> tuple[Bools, Floats]:
        """Return which training cases have known regions [n], and whether they are positive."""
        known = ~np.isnan(self.train.regions[:, self.index])
        return known, self.train.regions[known, self.index]

    def sampled(self, label: str) -> Iterator[RegionalPrediction]:
        """Yield the share of samples with a lesion in the region, and single samples."""
        index, present = self.index, self.scored.present[:, :, self.index]
        yield RegionalPrediction(
            SAMPLED,
            f"{label} ({len(present)} samples)",
            self.scored.share[None, :, index],
            self.reference.share[:, index],
        )
        yield RegionalPrediction(
            "one_sample", f"one sample (mean of {len(present)})", present.astype(np.float64)
        )

    def stated(self) -> Iterator[RegionalPrediction]:
        """Yield the risk that a forecast states in closed form, if it does.

        Its threshold comes from the scored cases, without their outcomes: a bundle that states it
        has no samples of validation cases.
        """
        if self.closed_form is not None:
            risk = self.closed_form[:, self.index]
            yield RegionalPrediction(CLOSED_FORM, "closed form, from the map", risk[None], risk)

    def baselines(self, arms: int, *, runs: int, seed: int) -> Iterator[RegionalPrediction]:
        """Yield the baselines, fitted on the training cases; none without such cases."""
        known, observed = self._training
        if not known.any():
            return
        arm = self.train.arm[known]
        rate = np.full(int(self.scored.rows.sum()), observed.mean())
        yield RegionalPrediction(
            "monte_carlo",
            f"Monte Carlo from the region's rate (mean of {runs} runs)",
            monte_carlo(rate, runs=runs, seed=seed),
        )
        by_arm = arm_statistics(arm, observed, arms=arms).activity
        by_arm = np.where(np.isnan(by_arm), observed.mean(), by_arm)
        yield RegionalPrediction(
            ARM_RATE,
            "region's rate in the arm",
            by_arm[self.scored.table.arm[self.scored.rows]][None],
            by_arm[self.reference.table.arm[self.reference.rows]],
        )
        model = fit_regression_baseline(self.train.image_features[known], arm, observed, arms=arms)
        yield RegionalPrediction(
            REGRESSION,
            "logistic regression on image features",
            _regression_probability(model, self.scored)[None],
            _regression_probability(model, self.reference),
        )


def _regression_probability(model: RegressionBaseline, cases: SampledCases) -> Floats:
    rows = cases.rows
    return model.probability(cases.table.image_features[rows], cases.table.arm[rows])
