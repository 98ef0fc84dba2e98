"""Sentences that every forecast carries: disclaimers, notes and warnings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lesioncast.bundle.evaluation_card import EvaluationCard, read_evaluation_card
from lesioncast.errors import EvaluationCardError, ForecastError
from lesioncast.imaging.channels import BASELINE
from lesioncast.warning_list import CodedWarning, warn
from storage import VisitSchedule

RESEARCH_USE = "Research use only; not a medical device."
PREDICTED = "Predicted, not observed."
POSITIVITY = (
    "Arms other than the one received are counterfactual. Where arms come from different trials, "
    "arm and scanner are confounded: the model may have seen no patient like this one on that arm, "
    "and nothing in the data can show that its answer is right."
)
SIMULATED_SUBJECTS = "The subjects are simulated."
TRAINED_ON_SIMULATED = (
    "The bundle was trained on simulated patients alone: its forecasts are no evidence about real "
    "ones."
)
BRAIN_MASK_MISSING = (
    "The training images were cleared outside a brain mask. This subject has no brain mask, so the "
    "images show what the model has not seen."
)
BRAIN_MASK_UNSEEN = (
    "The training images were not cleared outside a brain mask. Those of this subject are, which "
    "the model has not seen."
)
_ALMOST_ALL = 0.95
NOT_EVALUATED = (
    "This bundle has not been evaluated: whether arm and trial can be told from the images, and "
    "which arms share a trial, was not measured."
)


def sessions_note(sessions: Sequence[str], visits: VisitSchedule) -> str:
    """Return the note on what a comparison of arms means if the model sees these sessions."""
    baseline = visits.label(BASELINE)
    if tuple(sessions) == (BASELINE,):
        return (
            f"The model saw the images of {baseline} alone, from before any treatment. Each arm is "
            "forecast as if it were taken from then on."
        )
    return (
        f"The model saw images from after {baseline}, which already show the effect of the arm "
        "received. Forecasts under other arms do not say what these arms would have done from the "
        "start."
    )


def brain_mask_warnings(share: float | None, *, cleared: bool) -> tuple[CodedWarning, ...]:
    """Return a warning if a subject's images differ from those of the training by the brain mask.

    `share` is that of the training cases whose images were cleared outside a brain mask, None if it
    is not known. `cleared` says whether those of the subject were.
    """
    if share is None:
        return ()
    if share > _ALMOST_ALL and not cleared:
        return (warn("brain_mask_missing", BRAIN_MASK_MISSING),)
    if share < 1 - _ALMOST_ALL and cleared:
        return (warn("brain_mask_unseen", BRAIN_MASK_UNSEEN),)
    return ()


def bundle_warnings(bundle: Path, digest: str) -> tuple[CodedWarning, ...]:
    """Return the warnings of the bundle's evaluation on what its data cannot identify.

    Raise ForecastError if the evaluation beside the bundle is of another bundle.
    """
    card = _evaluation_card(bundle, digest)
    if card is None:
        return (warn("not_evaluated", NOT_EVALUATED),)
    return card.identifiability_warnings


def bundle_p_active_errors(bundle: Path, digest: str) -> Mapping[str, float]:
    """Return by how much mean P(active) missed the truth in the bundle's evaluation, by arm.

    The result is empty where that is not known. Raise ForecastError as `bundle_warnings` does.
    """
    card = _evaluation_card(bundle, digest)
    return {} if card is None else card.p_active_errors


def _evaluation_card(bundle: Path, digest: str) -> EvaluationCard | None:
    try:
        return read_evaluation_card(bundle, digest)
    except EvaluationCardError as error:
        raise ForecastError(str(error)) from error
