"""Say which stores fit a bundle, and which sessions its model may be shown. Needs no torch."""

from collections.abc import Sequence

from lesioncast.bundle.description import BundleDescription
from lesioncast.errors import ForecastError
from lesioncast.imaging.channels import BASELINE, Sessions, parse_channels, sessions_of
from storage import Store
from storage.settings import PREPARATION


def check_compatible(bundle: BundleDescription, store: Store) -> None:
    """Raise ForecastError if the bundle's training images had other arms or another preparation."""
    compared = [
        (name, getattr(bundle.config.store, name), getattr(store.table.settings, name))
        for name in PREPARATION
    ]
    for name, expected, got in (*compared, ("arms", bundle.config.model.arms, store.spec.arms)):
        if expected != got:
            raise ForecastError(
                f"{store.path}: expected the bundle's {name} {expected}, got {got}; convert the "
                f"data with the configuration that {bundle.path} was trained with"
            )


def input_sessions(bundle: BundleDescription) -> Sessions:
    """Return the sessions whose images the bundle's model takes."""
    return sessions_of(parse_channels(bundle.config.model.control.condition))


def supported_sessions(bundle: BundleDescription) -> tuple[Sessions, ...]:
    """Return the choices of sessions that the bundle was trained for.

    The first is all sessions that the model takes. The second, if training covered it, is baseline.
    """
    sessions = input_sessions(bundle)
    if bundle.config.baseline_only and sessions != (BASELINE,):
        return sessions, (BASELINE,)
    return (sessions,)


def resolve_sessions(bundle: BundleDescription, requested: Sequence[str]) -> Sessions:
    """Return the requested sessions, or by default all that the model takes.

    Raise ForecastError if the bundle was not trained for them.
    """
    choices = supported_sessions(bundle)
    if requested and tuple(requested) not in choices:
        raise ForecastError(
            f"forecast.sessions: expected {format_choices(choices)}, got {', '.join(requested)}; "
            f"to show {BASELINE} alone, train stage 2 with finetune.session_dropout above 0"
        )
    return tuple(requested) or choices[0]


def format_choices(choices: Sequence[Sessions]) -> str:
    """Return the choices in words, such as "w000, w048 or else w000"."""
    return " or else ".join(", ".join(sessions) for sessions in choices)


def comparison_sessions(bundle: BundleDescription) -> Sessions | None:
    """Return the sessions to show when the arms of a patient are compared; None means all.

    Baseline alone is best where the bundle was trained for it: later images already show the effect
    of the arm received.
    """
    sessions = supported_sessions(bundle)[-1]
    return None if sessions == input_sessions(bundle) else sessions
