"""What every forecast has to say about itself."""

from collections.abc import Sequence
from pathlib import Path

from lesioncast.bundle.evaluation_card import read_warnings
from lesioncast.errors import EvaluationCardError, ForecastError
from lesioncast.imaging.channels import BASELINE_SESSION

RESEARCH_USE = "Research use only; not a medical device."
PREDICTED = "Predicted, not observed."
POSITIVITY = (
    "Arms other than the one received are counterfactual. Where arms come from different trials, "
    "arm and scanner are confounded: the model may have seen no patient like this one on that arm, "
    "and nothing in the data can show that its answer is right."
)
FROM_START = (
    f"Shown the images of {BASELINE_SESSION} alone, before any treatment: each arm is forecast as "
    "if taken from then on."
)
FROM_LATER = (
    f"The images shown after {BASELINE_SESSION} tell what the arm received has done by then, so "
    "forecasts under other arms do not say what these would have done from the start."
)
NOT_EVALUATED = (
    "This bundle has not been evaluated: whether arm and trial can be told from the images, and "
    "which arms share a trial, was not measured."
)


def sessions_note(sessions: Sequence[str]) -> str:
    """What arms that are compared by the images of these sessions can say."""
    return FROM_START if tuple(sessions) == (BASELINE_SESSION,) else FROM_LATER


def bundle_warnings(bundle: Path, digest: str) -> tuple[str, ...]:
    """What the bundle's evaluation found that its data cannot show of treatments.

    Raises ForecastError where what lies beside the bundle is another's evaluation.
    """
    try:
        found = read_warnings(bundle, digest)
    except EvaluationCardError as error:
        raise ForecastError(str(error)) from error
    return (NOT_EVALUATED,) if found is None else found
