"""How typical a patient is of those that the bundle was trained on, and the warnings that follow.

A forecast carries both and is never refused because of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lesioncast.forecasting.output.record import Record
from lesioncast.imaging.channels import CHANNELS, SESSIONS, parse_channels
from lesioncast.imaging.features.patient_features import (
    BEFORE_TREATMENT,
    FEATURE_GROUPS,
    in_words,
    patient_features,
)
from lesioncast.imaging.features.tissue_contrast import RawRange
from lesioncast.imaging.typicality import ArmSupport, TypicalityReference, judge
from lesioncast.warning_list import CodedWarning, warn
from storage import Case, Store, VisitSchedule

# Below this p-value a patient is called untypical: 1 in 100 of those like the training patients is.
UNTYPICAL = 0.01
# Below this share an arm counts as one that patients like this one did not receive; the evaluation
# draws the line of overlap at the same quantile.
UNSUPPORTED = 0.05
CHANNEL_WORDS = {
    "flair": "FLAIR",
    "t2": "T2 lesions",
    "gad": "enhancing lesions",
    "net2": "new and enlarging T2 lesions",
}
_UNKNOWN = (
    "How typical this patient is of the training is not known: {reason}. Nothing shows that the "
    "forecast holds."
)


@dataclass(frozen=True, kw_only=True)
class UnusualFeatureSummary(Record):
    """A feature of the patient in words, and the range of 99 % of the training patients."""

    name: str
    value: str
    training_low: str
    training_high: str


@dataclass(frozen=True, kw_only=True)
class ArmSupportSummary(Record):
    """Whether training patients like this one received an arm.

    `p_value` is the share of the `cases` on the arm whose propensity for it, given the images of
    baseline, is as low as this patient's. Both are None where that is not known.
    """

    cases: int
    p_value: float | None
    received_by_similar: bool | None


@dataclass(frozen=True, kw_only=True)
class TypicalitySummary(Record):
    """How typical the patient is: the conformal p-value among `ranked` training patients.

    `p_value` is None where it is not known. `beyond_training_range` names inputs of the prior,
    `missing_images` channels that the model reads.
    """

    p_value: float | None
    ranked: int
    untypical: bool
    unusual_features: tuple[UnusualFeatureSummary, ...]
    beyond_training_range: tuple[str, ...]
    missing_images: tuple[str, ...]
    days_outside_training: tuple[str, ...]
    arms: Mapping[str, ArmSupportSummary]


UNKNOWN_TYPICALITY = TypicalitySummary(
    p_value=None,
    ranked=0,
    untypical=False,
    unusual_features=(),
    beyond_training_range=(),
    missing_images=(),
    days_outside_training=(),
    arms={},
)


@dataclass(frozen=True)
class KnownLimits:
    """What else is known of a patient's inputs beside the features of the images."""

    #: Names of inputs beyond the training range.
    clipped: Sequence[str]
    #: Channels that the model reads, such as w048/flair.
    condition: Sequence[str]
    #: Sentences on days between sessions that training did not have.
    days: Sequence[str]


def summarise_typicality(
    reference: TypicalityReference | None, store: Store, case: Case, limits: KnownLimits
) -> TypicalitySummary:
    """Judge a case of a store by the bundle's reference, None if it has none."""
    names, visits = store.spec.arms, store.spec.visits
    missing = tuple(
        f"{CHANNEL_WORDS[channel]} at {visits.label(session)}"
        for session, channel in parse_channels(limits.condition)
        if not case.present[SESSIONS.index(session), CHANNELS.index(channel)]
    )
    judged = None
    if reference is not None:
        raw = {session: RawRange(*values) for session, values in case.intensity.items()}
        features = patient_features(store.read(case.index), store.spec.spacing, raw)
        judged = judge(
            reference, features, groups=FEATURE_GROUPS, before_treatment=BEFORE_TREATMENT
        )
    unknown = [ArmSupport(None, 0)] * len(names)
    return TypicalitySummary(
        p_value=None if judged is None else judged.p_value,
        ranked=0 if judged is None else judged.ranked,
        untypical=judged is not None and judged.p_value is not None and judged.p_value < UNTYPICAL,
        unusual_features=()
        if judged is None
        else tuple(
            _feature(one.column, (one.value, one.low, one.high), visits) for one in judged.unusual
        ),
        beyond_training_range=tuple(limits.clipped),
        missing_images=missing,
        days_outside_training=tuple(limits.days),
        arms={
            name: _support(support)
            for name, support in zip(names, unknown if judged is None else judged.arms, strict=True)
        },
    )


def _feature(
    column: int, values: tuple[float, float, float], visits: VisitSchedule
) -> UnusualFeatureSummary:
    words = in_words(column, *values, visits=visits)
    return UnusualFeatureSummary(
        name=words.name, value=words.value, training_low=words.low, training_high=words.high
    )


def _support(support: ArmSupport) -> ArmSupportSummary:
    p_value = support.p_value
    return ArmSupportSummary(
        cases=support.cases,
        p_value=p_value,
        received_by_similar=None if p_value is None else p_value >= UNSUPPORTED,
    )


def typicality_line(typicality: TypicalitySummary) -> str:
    """Return in one line how typical the patient is, for figures, pages and files."""
    if typicality.p_value is None:
        return "Typicality: not known."
    verdict = "untypical of the training" if typicality.untypical else "typical of the training"
    return (
        f"Typicality: {verdict}, p = {typicality.p_value:.2g} among {typicality.ranked} patients."
    )


def _most_unusual(typicality: TypicalitySummary) -> str:
    if not typicality.untypical:
        return ""
    told = "; ".join(
        f"{one.name} {one.value} (training {one.training_low} to {one.training_high})"
        for one in typicality.unusual_features
    )
    return f" Most unusual: {told}."


def typicality_warnings(
    typicality: TypicalitySummary, *, has_reference: bool, arms: Sequence[str]
) -> Iterator[CodedWarning]:
    """Yield the warnings that follow from how typical a patient is, the gravest first.

    `arms` are those that are forecast.
    """
    if typicality.untypical:
        yield warn(
            "untypical_patient",
            "This patient is unlike those that the bundle was trained on "
            f"(p = {typicality.p_value:.2g}): do not rely on the numbers."
            f"{_most_unusual(typicality)}",
        )
    if typicality.p_value is None:
        reason = (
            "too few training patients have the same inputs"
            if has_reference
            else "the bundle holds no reference"
        )
        yield warn("typicality_unknown", _UNKNOWN.format(reason=reason))
    if typicality.beyond_training_range:
        yield warn(
            "beyond_training_range",
            "Beyond the range of the training cases, and set to its limit to compute P(active) and "
            f"the expected count: {', '.join(typicality.beyond_training_range)}. Nothing shows "
            "that both hold for such a patient.",
        )
    for sentence in typicality.days_outside_training:
        yield warn("days_outside_training", sentence)
    unsupported = [arm for arm in arms if typicality.arms[arm].received_by_similar is False]
    if unsupported:
        yield warn(
            "arm_not_received_by_similar",
            f"Hardly any training patient with baseline images like these received "
            f"{', '.join(unsupported)}: forecasts under such an arm reach beyond the data.",
        )
    if typicality.missing_images:
        yield warn(
            "missing_images",
            f"The model reads these images and has none of this patient: "
            f"{', '.join(typicality.missing_images)}.",
        )


def missing_covariate_warnings(known: Mapping[str, bool]) -> Iterator[CodedWarning]:
    """Yield a warning if covariates of the model are not known of a subject."""
    missing = [name for name, is_known in known.items() if not is_known]
    if missing:
        yield warn(
            "missing_covariates",
            f"The model reads these covariates and has none of this patient: {', '.join(missing)}.",
        )
