"""Warnings about counterfactual forecasts that the data do not identify.

No metric of forecasts for the factual arm shows whether those for other arms are right. That
depends on positivity (which patients could have received which arm) and on whether arm and scanner
can be separated. This module measures both and writes the warnings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.causal.leakage_probe import leakage_auc
from lesioncast.evaluation.causal.positivity import overlap_by_arm, positivity
from lesioncast.evaluation.causal.schema import (
    IdentifiabilityWarnings,
    LeakageProbe,
    Positivity,
)
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.imaging.channels import BASELINE
from lesioncast.imaging.features.appearance import APPEARANCE_FEATURES, INPUT_SESSIONS
from lesioncast.imaging.features.image_features import IMAGE_FEATURES
from lesioncast.warning_list import CodedWarning, warn
from storage import VisitSchedule

BASELINE_SESSIONS = (BASELINE,)
# Below this overlap a warning says that forecasts under the arm extrapolate.
MIN_OVERLAP = 0.5
FEATURES = (*APPEARANCE_FEATURES, *IMAGE_FEATURES)


def identifiability_warnings(
    outcomes: Sequence[OutcomeTable],
    trial: Sequence[str | None],
    *,
    arms: Sequence[str],
    sessions: Sequence[str],
    bootstrap: Bootstrap,
    visits: VisitSchedule,
) -> IdentifiabilityWarnings:
    """Run the leakage probes and measure positivity on all cases of the `outcomes` together.

    `trial` [n] is in the order of these cases. `sessions` are the model's input sessions. One set
    of probes reads baseline, where only enrolment and scanner can identify an arm. The
    other reads all input sessions, where the effect of the treatment can identify it too. The
    result names sessions as the trial does, by `visits`.
    """
    features = np.concatenate([_features(table) for table in outcomes])
    arm = [arms[index] for table in outcomes for index in table.arm]
    probes = [
        _probe(features, label, target=target, sessions=probed, bootstrap=bootstrap)
        for target, label in (("trial", trial), ("arm", arm))
        for probed in dict.fromkeys((BASELINE_SESSIONS, tuple(sessions)))
    ]
    probes += _probes_within_trials(features, arm, trial, bootstrap)
    overlap = overlap_by_arm(
        features[:, _columns(BASELINE_SESSIONS)], arm, arms=arms, seed=bootstrap.seed
    )
    support = positivity(arm, trial, arms=arms, overlap=overlap)
    probes = [replace(probe, sessions=tuple(map(visits.label, probe.sessions))) for probe in probes]
    warnings = coded_warnings(probes, support, baseline=visits.label(BASELINE))
    return IdentifiabilityWarnings(tuple(probes), support, tuple(warnings))


def _features(outcomes: OutcomeTable) -> Floats:
    """Return the columns named in `FEATURES`, [n, feature]."""
    assert outcomes.appearance is not None
    return np.column_stack([outcomes.appearance, outcomes.image_features])


def _columns(sessions: Sequence[str]) -> list[int]:
    """Return the columns of the features that need images of the given sessions only."""
    other_sessions = tuple(session for session in INPUT_SESSIONS if session not in sessions)
    # The FLAIR gain compares both sessions, and its name ends with neither.
    excluded = (*other_sessions, "flair_gain") if other_sessions else ()
    return [column for column, name in enumerate(FEATURES) if not name.endswith(excluded)]


def _probe(
    features: Floats,
    label: Sequence[str | None],
    *,
    target: str,
    sessions: Sequence[str],
    bootstrap: Bootstrap,
    within_trial: str | None = None,
) -> LeakageProbe:
    """Probe how well the features of some sessions predict the label, which is a `target`."""
    leakage = leakage_auc(features[:, _columns(sessions)], label, bootstrap)
    return LeakageProbe(target, within_trial, tuple(sessions), leakage)


def _probes_within_trials(
    features: Floats, arm: Sequence[str], trial: Sequence[str | None], bootstrap: Bootstrap
) -> list[LeakageProbe]:
    """Probe the arm from baseline within each trial that gave several arms.

    The AUC should be 0.5: within a trial, arms are assigned at random.
    """
    probes = []
    for name in sorted({name for name in trial if name is not None}):
        in_trial = np.array([case_trial == name for case_trial in trial])
        label = [received for received, member in zip(arm, in_trial, strict=True) if member]
        if len(set(label)) > 1:
            probes.append(
                _probe(
                    features[in_trial],
                    label,
                    target="arm",
                    sessions=BASELINE_SESSIONS,
                    bootstrap=bootstrap,
                    within_trial=name,
                )
            )
    return probes


def coded_warnings(
    probes: Sequence[LeakageProbe], support: Positivity, *, baseline: str
) -> list[CodedWarning]:
    """Return the warnings for readers of any forecast; those about contrasts come first.

    `baseline` is the trial's label of that session.
    """
    return [
        *_contrast_warnings(support),
        *(warning for probe in probes for warning in _leakage_warnings(probe, baseline)),
        *_overlap_warnings(support),
    ]


def _contrast_warnings(support: Positivity) -> list[CodedWarning]:
    """Warn of arms that no patient received and of arms that no trial compares."""
    if not support.cases_by_trial:
        return [
            warn(
                "trials_not_named",
                "The data name no trial, so it is not known which arms patients were randomised "
                "between: no contrast between arms is known to be identified.",
            )
        ]
    separate = support.pairs_without_common_trial
    given = [name for name, row in support.arms.items() if row.trials]
    missing = [name for name, row in support.arms.items() if not row.cases]
    warnings = []
    if missing:
        sentence = f"No patient received {join_words(missing)}: nothing is known of it here."
        warnings.append(warn("arm_never_received", sentence))
    if len(given) > 1 and len(separate) == len(given) * (len(given) - 1) // 2:
        sentence = (
            f"No two arms share a trial ({join_words(_arms_with_trials(support, given))}), so no "
            "contrast between arms is identified: a difference between them may be one "
            "between trials."
        )
        return [*warnings, warn("arms_never_compared", sentence)]
    for names, others in _group_separate_arms(given, {frozenset(pair) for pair in separate}):
        share = "shares" if len(names) == 1 else "share"
        sentence = (
            f"{_capitalise(join_words(names))} never {share} a trial with {join_words(others)}: no "
            "randomised comparison of them stands behind a forecast."
        )
        warnings.append(warn("arms_never_compared", sentence))
    return warnings


def _group_separate_arms(
    given: Sequence[str], separate: set[frozenset[str]]
) -> Iterator[tuple[list[str], list[str]]]:
    """Yield (arms, other arms) so that no arm of the first group shares a trial with the second.

    Arms with the same separate arms stand in one group. Each separate pair occurs once.
    """
    remaining = set(separate)
    separate_from = {
        name: [other for other in given if frozenset((name, other)) in separate] for name in given
    }
    for name in given:
        group = [other for other in given if separate_from[other] == separate_from[name]]
        others = [other for other in separate_from[name] if frozenset((name, other)) in remaining]
        if others:
            yield group, others
        remaining -= {frozenset((member, other)) for member in group for other in others}


def _arms_with_trials(support: Positivity, names: Sequence[str]) -> list[str]:
    """Return phrases such as "avonex in BRAVO"."""
    return [f"{name} in {join_words(support.arms[name].trials)}" for name in names]


def _leakage_warnings(probe: LeakageProbe, baseline: str) -> list[CodedWarning]:
    """Say whether the probe predicts its target; nothing if it has no interval."""
    auc = None if probe.leakage.auc is None else probe.leakage.auc.with_interval
    if auc is None:
        return []
    source = f"the images of {' and '.join(probe.sessions)}"
    figure = f"AUC {auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f}; 0.5 is chance"
    where = f" within {probe.within_trial}" if probe.within_trial else ""
    if auc.low <= 0.5:
        sentence = (
            f"A simple classifier does not tell the {probe.target}{where} from {source} "
            f"({figure}); finer traces than it reads may exist."
        )
        return [warn("leakage_not_found", sentence)]
    sentence = (
        f"The {probe.target}{where} can be told from {source} ({figure})"
        f"{_consequence(probe, baseline)}."
    )
    return [warn("leakage", sentence)]


def _consequence(probe: LeakageProbe, baseline: str) -> str:
    """Return the end of the sentence: what follows from a target that can be predicted."""
    if probe.within_trial:
        return ": the arms were not alike at the start, or the probe is mistaken"
    if probe.sessions != (baseline,):
        return ", by enrolment and scanner or by what treatment did until then"
    return ", so a model may take a scanner or a trial's patients for a treatment"


def _overlap_warnings(support: Positivity) -> list[CodedWarning]:
    """Warn of arms whose support contains few patients of other arms."""
    few = [
        f"{name} ({row.overlap:.0%} of the others)"
        for name, row in support.arms.items()
        if row.overlap is not None and row.overlap < MIN_OVERLAP
    ]
    if not few:
        return []
    sentence = (
        f"Most patients look like nobody who received {join_words(few)}: their forecasts under it "
        "reach beyond the data."
    )
    return [warn("low_overlap", sentence)]


def _capitalise(words: str) -> str:
    """Capitalise the first letter only; `str.capitalize` would lower the others."""
    return words[:1].upper() + words[1:]


def join_words(names: Sequence[str]) -> str:
    """Join names as in "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
