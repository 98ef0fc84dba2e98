"""Sections of tables.md on effects of arms: forecast, true, and observed within trials."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesioncast.imaging.channels import BASELINE_SESSION
from lesioncast.markdown import format_estimate, format_number, markdown_table

Record = Mapping[str, Any]

NAMES = {"activity": "Activity", "count": "Lesion count"}


def describe_sessions(sessions: Sequence[str]) -> str:
    """By whose images arms were compared."""
    if tuple(sessions) == (BASELINE_SESSION,):
        return f"from the images of {BASELINE_SESSION} alone, before any treatment"
    return f"from the images of {' and '.join(sessions)}"


def effect_sections(record: Record | None, sessions: Sequence[str]) -> list[str]:
    """Average and individual effects, the ranking of arms, the value of choosing by the model."""
    if record is None:
        return []
    known = record["ranking"] is not None
    opening = (
        f"{record['cases']} test cases forced onto every arm, {describe_sessions(sessions)}: "
        f"{record['samples']} samples on the same seeds for all arms of a case, each arm minus "
        f"{record['reference']}. Samples that seeds of their own would need for the same Monte "
        "Carlo error, times those drawn on common seeds, are the last column. "
    )
    opening += (
        "True effects are those of the simulated patients, with the luck that each of them had, "
        "which nobody can forecast: PEHE (Hill 2011, root mean square error of individual effects) "
        "has a floor above 0; beside it stands that of one effect for everyone, from the means of "
        "the training patients."
        if known
        else "No truth is known here: what follows is what the model says."
    )
    parts = ["## Effects of the arms", opening, _mean_counts(record["mean_count"])]
    parts += [_effects(name, rows) for name, rows in record["outcomes"].items()]
    if known:
        parts += [_ranking(record["ranking"]), *map(_policy, record["policy"])]
    return ["\n\n".join(parts)]


def _mean_counts(rows: Record) -> str:
    body = [
        [arm, format_number(row["forecast"], digits=2), format_number(row["true"], digits=2)]
        for arm, row in rows.items()
    ]
    return f"### Mean lesion count\n\n{markdown_table(['arm', 'forecast', 'true'], body)}"


def _effects(outcome: str, rows: Record) -> str:
    keys = ("forecast", "true", "forecast_minus_true", "pehe", "pehe_of_arm_means", "seeds_saved")
    head = ["arm", "forecast effect", "true effect", "forecast minus true"]
    head += ["PEHE", "PEHE of arm means", "samples saved"]
    body = [[arm, *(format_estimate(row[key]) for key in keys)] for arm, row in rows.items()]
    return f"### {NAMES[outcome]}\n\n{markdown_table(head, body)}"


def _ranking(record: Record) -> str:
    return (
        "### Ranking of the arms\n\nKendall's tau-b between forecast and true counts over the "
        f"arms: {format_estimate(record['tau'])} on average over the {record['patients']} patients "
        f"whose arms differ in both; {format_number(record['tau_of_means'])} between the arms' "
        "means."
    )


def _policy(record: Record) -> str:
    choices = {
        "model": "chosen by the model",
        "best_single": f"{record['best_single']} for everyone",
        "random": "drawn by lot",
        "oracle": "oracle",
        "model_minus_best_single": "model minus the single arm",
    }
    rows = [
        [label, *(format_estimate(record["value"][outcome][key]) for outcome in NAMES)]
        for key, label in choices.items()
    ]
    return (
        f"### Choosing among {', '.join(record['arms'])}\n\nTrue outcomes of the same patients "
        "under the arm that would be chosen for the fewest expected lesions; lower is better. The "
        "single arm is the best of the training patients; the oracle knows every future.\n\n"
        + markdown_table(["arm", "active", "lesions"], rows)
    )


def contrast_section(record: Record, sessions: Sequence[str]) -> str:
    """What was observed within trials, and what no data here can say."""
    rows = [
        [
            row["trial"],
            f"{row['arm']} - {row['reference']}",
            " / ".join(str(cases) for cases in row["cases"]),
            *(format_estimate(row[o][key]) for o in NAMES for key in ("difference", "aipw")),
        ]
        for row in record["rows"]
    ]
    head = ["trial", "contrast", "cases", "active, difference", "active, AIPW"]
    head += ["lesions, difference", "lesions, AIPW"]
    parts = [
        "## Observed effects within trials",
        "All cases with an outcome, whatever their split; the model has no part in it. Arms of one "
        "trial were assigned by chance, so these are effects of an arm taken from week 0 on. AIPW "
        "(Robins et al. 1994) adjusts for the lesions of week 0, cross-fitted in five folds. "
        + _likeness(sessions),
        markdown_table(head, rows)
        if rows
        else "No trial is named in the case table, so none is known.",
        _not_identified(record["not_identified"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _likeness(sessions: Sequence[str]) -> str:
    told = f"The effects above were forecast {describe_sessions(sessions)}"
    if tuple(sessions) == (BASELINE_SESSION,):
        return f"{told}, and answer the same question."
    return (
        f"{told}; later ones show what the arm received has done by then, so they answer another "
        "question."
    )


def _not_identified(pairs: Sequence[Sequence[str]]) -> str:
    if not pairs:
        return ""
    named = ", ".join(f"{first} and {second}" for first, second in pairs)
    return (
        f"**Not identified:** {named}. No trial holds both arms of these pairs, so nothing in the "
        "data can show that a forecast difference between them is right; it rests on the model."
    )
