"""What the data cannot show of treatments, measured, and the sentences that follow.

No metric of an own-arm forecast can tell whether its answers under other arms are right. That rests
on who could have received what, and on arm and scanner not being one and the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.causal.leakage_probe import leakage_auc
from lesioncast.evaluation.causal.positivity import overlap_by_arm, positivity
from lesioncast.evaluation.causal.schema import (
    IdentifiabilityWarnings,
    LeakageProbe,
    Positivity,
)
from lesioncast.evaluation.features.appearance import APPEARANCE_FEATURES, INPUT_SESSIONS
from lesioncast.evaluation.features.image_features import IMAGE_FEATURES
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap

Floats = npt.NDArray[np.float64]

BASELINE_SESSIONS = INPUT_SESSIONS[:1]
MIN_OVERLAP = 0.5  # of the others look like someone who received the arm: below, it is said so
FEATURES = (*APPEARANCE_FEATURES, *IMAGE_FEATURES)


def identifiability_warnings(
    outcomes: Sequence[OutcomeTable],
    trial: Sequence[str | None],
    *,
    arms: Sequence[str],
    sessions: Sequence[str],
    bootstrap: Bootstrap,
) -> IdentifiabilityWarnings:
    """Leak probe, positivity and their sentences, on all cases of `outcomes` together.

    `trial` [n] in the order of those cases; `sessions` are what the model sees. The probes read
    w000, before any treatment, where what tells an arm is who was enrolled and how they were
    scanned; and all that the model sees, where it may also be what the treatment did.
    """
    features = np.concatenate([_features(part) for part in outcomes])
    arm = [arms[index] for part in outcomes for index in part.arm]
    probes = [
        _probe(features, label, of=name, seen=seen, bootstrap=bootstrap)
        for name, label in (("trial", trial), ("arm", arm))
        for seen in dict.fromkeys((BASELINE_SESSIONS, tuple(sessions)))
    ]
    probes += _within(features, arm, trial, bootstrap)
    alike = overlap_by_arm(
        features[:, _columns(BASELINE_SESSIONS)], arm, arms=arms, seed=bootstrap.seed
    )
    positive = positivity(arm, trial, arms=arms, overlap=alike)
    return IdentifiabilityWarnings(
        tuple(probes), positive, tuple(warning_sentences(probes, positive))
    )


def _features(outcomes: OutcomeTable) -> Floats:
    looks = outcomes.appearance
    assert looks is not None
    return np.column_stack([looks, outcomes.image_features])


def _columns(sessions: Sequence[str]) -> list[int]:
    """The features that images of these sessions alone can give."""
    later = tuple(session for session in INPUT_SESSIONS if session not in sessions)
    absent = (*later, "flair_gain") if later else ()
    return [place for place, name in enumerate(FEATURES) if not name.endswith(absent)]


def _probe(
    features: Floats,
    label: Sequence[str | None],
    *,
    of: str,
    seen: Sequence[str],
    bootstrap: Bootstrap,
    within: str | None = None,
) -> LeakageProbe:
    leakage = leakage_auc(features[:, _columns(seen)], label, bootstrap)
    return LeakageProbe(of, within, tuple(seen), leakage)


def _within(
    features: Floats, arm: Sequence[str], trial: Sequence[str | None], bootstrap: Bootstrap
) -> list[LeakageProbe]:
    """The arm from w000 in each trial that gave several: chance, where they were drawn by lot."""
    found = []
    for name in sorted({name for name in trial if name is not None}):
        inside = np.array([each == name for each in trial])
        label = [each for each, here in zip(arm, inside, strict=True) if here]
        if len(set(label)) > 1:
            found.append(
                _probe(
                    features[inside],
                    label,
                    of="arm",
                    seen=BASELINE_SESSIONS,
                    bootstrap=bootstrap,
                    within=name,
                )
            )
    return found


def warning_sentences(probes: Sequence[LeakageProbe], positive: Positivity) -> list[str]:
    """What a reader of any forecast must know, in plain words; the first is about contrasts."""
    return [
        *_contrast_words(positive),
        *(words for probe in probes for words in _leak_words(probe)),
        *_overlap_words(positive),
    ]


def _contrast_words(positive: Positivity) -> list[str]:
    if not positive.cases_by_trial:
        return [
            "The data name no trial, so it is not known which arms patients were randomised "
            "between: no contrast between arms is known to be identified."
        ]
    apart = positive.pairs_without_common_trial
    given = [name for name, row in positive.arms.items() if row.trials]
    missing = [name for name, row in positive.arms.items() if not row.cases]
    words = []
    if missing:
        words.append(f"No patient received {join_words(missing)}: nothing is known of it here.")
    if len(given) > 1 and len(apart) == len(given) * (len(given) - 1) // 2:
        return [
            *words,
            f"No two arms share a trial ({join_words(_with_trial(positive, given))}), so no "
            "contrast between arms is identified: a difference between them may be one "
            "between trials.",
        ]
    for names, others in _apart(given, {frozenset(pair) for pair in apart}):
        share = "shares" if len(names) == 1 else "share"
        words.append(
            f"{_sentence(join_words(names))} never {share} a trial with {join_words(others)}: no "
            "randomised comparison of them stands behind a forecast."
        )
    return words


def _apart(
    given: Sequence[str], apart: set[frozenset[str]]
) -> Iterator[tuple[list[str], list[str]]]:
    """(arms, the arms that none of them ever met), each pair once."""
    left = set(apart)
    never = {name: [each for each in given if frozenset((name, each)) in apart] for name in given}
    for name in given:
        alike = [each for each in given if never[each] == never[name]]
        others = [each for each in never[name] if frozenset((name, each)) in left]
        if others:
            yield alike, others
        left -= {frozenset((one, other)) for one in alike for other in others}


def _with_trial(positive: Positivity, names: Sequence[str]) -> list[str]:
    return [f"{name} in {join_words(positive.arms[name].trials)}" for name in names]


def _leak_words(probe: LeakageProbe) -> list[str]:
    auc = None if probe.leakage.auc is None else probe.leakage.auc.with_interval
    if auc is None:
        return []
    weeks = " and ".join(str(int(session[1:])) for session in probe.sessions)
    source = f"the images of week{'s' if len(probe.sessions) > 1 else ''} {weeks}"
    figure = f"AUC {auc.value:.2f}, {auc.low:.2f} to {auc.high:.2f}; 0.5 is chance"
    where = f" within {probe.within_trial}" if probe.within_trial else ""
    if auc.low <= 0.5:
        return [
            f"A simple classifier does not tell the {probe.target}{where} from {source} "
            f"({figure}); finer traces than it reads may exist."
        ]
    return [f"The {probe.target}{where} can be told from {source} ({figure}){_consequence(probe)}."]


def _consequence(probe: LeakageProbe) -> str:
    if probe.within_trial:
        return ": the arms were not alike at the start, or the probe is mistaken"
    if probe.sessions != BASELINE_SESSIONS:
        return ", by enrolment and scanner or by what treatment did until then"
    return ", so a model may take a scanner or a trial's patients for a treatment"


def _overlap_words(positive: Positivity) -> list[str]:
    rows = positive.arms.items()
    few = [
        f"{name} ({row.overlap:.0%} of the others)"
        for name, row in rows
        if row.overlap is not None and row.overlap < MIN_OVERLAP
    ]
    if not few:
        return []
    return [
        f"Most patients look like nobody who received {join_words(few)}: their forecasts under it "
        "reach beyond the data."
    ]


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def join_words(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
