"""Sentences that every forecast carries: disclaimers, notes and warnings."""

from collections.abc import Sequence
from pathlib import Path

from lesioncast.bundle.evaluation_card import read_warnings
from lesioncast.errors import EvaluationCardError, ForecastError
from lesioncast.imaging.channels import BASELINE
from storage import VisitSchedule

RESEARCH_USE = "Research use only; not a medical device."
PREDICTED = "Predicted, not observed."
POSITIVITY = (
    "Arms other than the one received are counterfactual. Where arms come from different trials, "
    "arm and scanner are confounded: the model may have seen no patient like this one on that arm, "
    "and nothing in the data can show that its answer is right."
)
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


def bundle_warnings(bundle: Path, digest: str) -> tuple[str, ...]:
    """Return the warnings of the bundle's evaluation on what its data cannot identify.

    Raise ForecastError if the evaluation beside the bundle is of another bundle.
    """
    try:
        warnings = read_warnings(bundle, digest)
    except EvaluationCardError as error:
        raise ForecastError(str(error)) from error
    return (NOT_EVALUATED,) if warnings is None else warnings
