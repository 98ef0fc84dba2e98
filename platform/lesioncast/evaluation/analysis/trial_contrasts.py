"""Observed effects within trials, and the pairs of arms that no trial compares."""

from collections.abc import Sequence
from dataclasses import dataclass

from lesioncast.arrays import Floats
from lesioncast.evaluation.causal.effects import is_active
from lesioncast.evaluation.causal.trial_effects import (
    TrialContrast,
    arms_without_common_trial,
    concatenate_outcomes,
    contrasts,
    cross_fitted_aipw,
    fit_outcome_models,
    mean_difference,
)
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate_mean,
    estimate_of,
)
from lesioncast.evaluation.metrics.estimate import Estimate


@dataclass(frozen=True)
class ObservedEffect:
    """Difference of mean outcomes between two arms, and the same adjusted by AIPW."""

    difference: Estimate
    aipw: Estimate


@dataclass(frozen=True)
class ContrastReport:
    """Observed effect of `arm` against `reference_arm` within one trial."""

    trial: str
    arm: str
    reference_arm: str
    arm_cases: int
    reference_cases: int
    activity: ObservedEffect
    count: ObservedEffect

    @property
    def group(self) -> str:
        """Return trial and arms in one label."""
        return f"{self.arm} minus {self.reference_arm} in {self.trial}"


@dataclass(frozen=True)
class TrialContrasts:
    """Every contrast within a trial, and the pairs of arms that share no trial."""

    contrasts: tuple[ContrastReport, ...]
    not_identified: tuple[tuple[str, str], ...]


def trial_contrasts(
    tables: Sequence[OutcomeTable], *, arms: Sequence[str], reference: int, bootstrap: Bootstrap
) -> TrialContrasts:
    """Return the observed effects over the cases of all `tables`, against the `reference` arm."""
    trial, arm, features, count = concatenate_outcomes(tables)
    unconnected = arms_without_common_trial(trial, arm, len(arms))
    return TrialContrasts(
        contrasts=tuple(
            _contrast(
                contrast,
                features[contrast.rows],
                count[contrast.rows],
                arms=arms,
                bootstrap=bootstrap,
            )
            for contrast in contrasts(trial, arm, reference)
        ),
        not_identified=tuple((arms[first], arms[second]) for first, second in unconnected),
    )


def _contrast(
    contrast: TrialContrast,
    features: Floats,
    count: Floats,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> ContrastReport:
    weights = bootstrap.weights(len(count))
    active_aipw, count_aipw = cross_fitted_aipw(
        features, count, contrast.treated, fit=fit_outcome_models, seed=bootstrap.seed
    )

    def effect(outcome: Floats, adjusted: Floats) -> ObservedEffect:
        return ObservedEffect(
            difference=estimate_of(mean_difference(outcome, contrast.treated), weights),
            aipw=estimate_mean(adjusted, weights),
        )

    return ContrastReport(
        trial=contrast.trial,
        arm=arms[contrast.arm],
        reference_arm=arms[contrast.reference],
        arm_cases=int(contrast.treated.sum()),
        reference_cases=int((~contrast.treated).sum()),
        activity=effect(is_active(count), active_aipw),
        count=effect(count, count_aipw),
    )
