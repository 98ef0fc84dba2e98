"""Sections of tables.md on effects of arms: forecast, true, and observed within trials."""

from collections.abc import Callable, Mapping, Sequence

from lesioncast.evaluation.analysis.arm_errors import ArmMeanErrors
from lesioncast.evaluation.analysis.treatment_effects import (
    ArmEffect,
    ArmRanking,
    MeanCount,
    Policy,
    PolicyValues,
    TreatmentEffects,
)
from lesioncast.evaluation.analysis.trial_contrasts import ContrastReport, TrialContrasts
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.imaging.channels import BASELINE
from lesioncast.markdown import format_estimate, format_number, markdown_table
from storage import VisitSchedule


def describe_sessions(sessions: Sequence[str], visits: VisitSchedule) -> str:
    """Describe the sessions, by their labels, from whose images arms were compared."""
    if tuple(sessions) == (visits.label(BASELINE),):
        return f"from the images of {sessions[0]} alone, before any treatment"
    return f"from the images of {' and '.join(sessions)}"


NO_FLOOR = (
    "The floor is not known here: the trial's folder does not hold settings of this version of the "
    "simulation."
)


def describe_source(samples: int | None) -> str:
    """Say which part of the model made the figures on every arm."""
    if samples is None:
        return "as the prognostic prior states it, without samples"
    return f"{samples} samples on the same seeds for all arms of a case"


def effect_sections(
    effects: TreatmentEffects | None, sessions: Sequence[str], visits: VisitSchedule
) -> list[str]:
    """Return average and individual effects, the ranking of arms and the value of policies."""
    if effects is None:
        return []
    parts = [
        "## Effects of the arms",
        _opening(effects, describe_sessions(sessions, visits)),
        _mean_counts(effects.mean_count, effects.mean_count_errors),
        _effects("Activity", effects.outcomes.activity),
        _effects("Lesion count", effects.outcomes.count),
    ]
    if effects.ranking is not None:
        parts += [_ranking(effects.ranking), *map(_policy, effects.policies)]
    return ["\n\n".join(parts)]


def _opening(effects: TreatmentEffects, images: str) -> str:
    sentences = [
        f"{effects.cases} test cases under every arm, {images}: "
        f"{describe_source(effects.samples)}. An effect is an arm minus {effects.reference_arm}."
    ]
    if effects.samples is not None:
        sentences.append(
            "The last column is the variance reduction: how many times the samples independent "
            "seeds would need for the same Monte Carlo error."
        )
    if effects.ranking is None:
        return " ".join(
            [*sentences, "No truth is known here: the table shows what the model says."]
        )
    sentences.append(
        "True effects are those of the simulated patients. They include each patient's own luck, "
        "which nobody can forecast, so the PEHE (Hill 2011, root mean square error of individual "
        "effects) cannot reach 0. Beside it stands the PEHE of one effect for everyone, from the "
        "means of the training patients."
    )
    sentences.append(
        "The floor is the PEHE expected of the exact forecast from all that is recorded at week 0, "
        "by the law of the simulation. On these patients chance may put a forecast a little below."
        if effects.has_floor
        else NO_FLOOR
    )
    return " ".join(sentences)


def _mean_counts(arms: Mapping[str, MeanCount], errors: ArmMeanErrors | None) -> str:
    rows = [
        [
            arm,
            format_estimate(mean.forecast, digits=2),
            format_number(mean.true, digits=2),
            format_estimate(mean.forecast_minus_true, digits=2),
            format_number(mean.training, digits=2),
        ]
        for arm, mean in arms.items()
    ]
    head = ["arm", "forecast", "true", "forecast minus true", "training mean of the arm"]
    table = markdown_table(head, rows)
    return f"### Mean lesion count\n\n{table}{describe_arm_errors(errors, digits=2)}"


def describe_arm_errors(errors: ArmMeanErrors | None, *, digits: int) -> str:
    """Return a paragraph on the errors of the means by arm; nothing without a known truth."""
    if errors is None:
        return ""
    of_forecast = format_estimate(errors.forecast, digits=digits)
    text = f"\n\nMean absolute error over the arms: {of_forecast} of the forecast"
    if errors.training_means is not None:
        of_training = format_estimate(errors.training_means, digits=digits)
        difference = format_estimate(errors.forecast_minus_training_means, digits=digits)
        text += f", {of_training} of the training means, difference {difference}"
    return f"{text}. Chance errors of the arms do not cancel here."


def _effects(outcome: str, arms: Mapping[str, ArmEffect]) -> str:
    columns: dict[str, Callable[[ArmEffect], Estimate | None]] = {
        "forecast effect": lambda effect: effect.forecast,
        "true effect": lambda effect: effect.true,
        "forecast minus true": lambda effect: effect.forecast_minus_true,
        "PEHE": lambda effect: effect.pehe,
        "PEHE of arm means": lambda effect: effect.pehe_of_arm_means,
        "PEHE minus that of arm means": lambda effect: effect.pehe_minus_that_of_arm_means,
        "floor of the PEHE": lambda effect: effect.pehe_floor,
    }
    if any(effect.variance_reduction is not None for effect in arms.values()):
        columns["variance reduction"] = lambda effect: effect.variance_reduction
    rows = [
        [arm, *(format_estimate(value(effect)) for value in columns.values())]
        for arm, effect in arms.items()
    ]
    return f"### {outcome}\n\n{markdown_table(['arm', *columns], rows)}"


def _ranking(ranking: ArmRanking) -> str:
    return (
        "### Ranking of the arms\n\nKendall's tau-b between forecast and true counts over the "
        f"arms: {format_estimate(ranking.kendall_tau)} on average over the {ranking.cases} "
        "patients whose arms differ in both, "
        f"{format_number(ranking.kendall_tau_of_means)} between the arms' means."
    )


def _policy(policy: Policy) -> str:
    choices: dict[str, Callable[[PolicyValues], Estimate | None]] = {
        "chosen by the model": lambda values: values.model,
        f"{policy.best_single_arm} for everyone": lambda values: values.best_single_arm,
        "chosen at random": lambda values: values.random_arm,
        "oracle": lambda values: values.oracle,
        "model minus the single arm": lambda values: values.model_minus_best_single_arm,
    }
    rows = [
        [label, format_estimate(value(policy.activity)), format_estimate(value(policy.count))]
        for label, value in choices.items()
    ]
    return (
        f"### Choosing among {', '.join(policy.arms)}\n\nTrue outcomes of the same patients under "
        "the arm with the fewest expected lesions; lower is better. The single arm is the best of "
        "the training patients. The oracle knows every patient's future.\n\n"
        + markdown_table(["arm", "active", "lesions"], rows)
    )


def contrast_section(
    contrasts: TrialContrasts, sessions: Sequence[str], visits: VisitSchedule
) -> str:
    """Return the effects observed within trials, and the contrasts that no data can show."""
    head = ["trial", "contrast", "cases", "active, difference", "active, AIPW"]
    head += ["lesions, difference", "lesions, AIPW"]
    parts = [
        "## Observed effects within trials",
        "All cases with an outcome, whatever their split. The model plays no part in this table. "
        "Arms of one trial were assigned at random, so these are effects of an arm taken from "
        "baseline on. AIPW (Robins et al. 1994) adjusts for the lesions of baseline, cross-fitted "
        f"in five folds. {_same_question(sessions, visits)}",
        markdown_table(head, [_contrast_row(contrast) for contrast in contrasts.contrasts])
        if contrasts.contrasts
        else "No trial is named in the case table, so no contrast is observed.",
        _not_identified(contrasts.not_identified),
    ]
    return "\n\n".join(part for part in parts if part)


def _contrast_row(contrast: ContrastReport) -> list[str]:
    return [
        contrast.trial,
        f"{contrast.arm} - {contrast.reference_arm}",
        f"{contrast.arm_cases} / {contrast.reference_cases}",
        format_estimate(contrast.activity.difference),
        format_estimate(contrast.activity.aipw),
        format_estimate(contrast.count.difference),
        format_estimate(contrast.count.aipw),
    ]


def _same_question(sessions: Sequence[str], visits: VisitSchedule) -> str:
    forecast = f"The effects above were forecast {describe_sessions(sessions, visits)}"
    if tuple(sessions) == (visits.label(BASELINE),):
        return f"{forecast}, and answer the same question."
    return (
        f"{forecast}. Later images show what the received arm has done by then, so the forecast "
        "effects answer another question."
    )


def _not_identified(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    named = ", ".join(f"{first} and {second}" for first, second in pairs)
    return (
        f"**Not identified:** {named}. No trial holds both arms of these pairs, so nothing in the "
        "data can show that a forecast difference between them is right. It rests on the model."
    )
