"""Fixtures of the service's tests: what only takes time is made short."""

from collections.abc import Iterator

import pytest
from matplotlib.figure import Figure

from lesioncast.forecasting.output import figure
from serve.api import status_feed


@pytest.fixture(scope="module", autouse=True)
def short_waits() -> Iterator[None]:
    """Draw blank figures, and poll often for events.

    The figure takes nine tenths of the time of a tiny forecast, and no test looks at it but those
    of `tests/forecasting` and the one that takes `real_figures`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "forecast_figure", blank_figure)
        patch.setattr(status_feed, "POLL_SECONDS", 0.05)
        yield


REAL_FIGURE = figure.forecast_figure


def blank_figure(*_: object, **__: object) -> Figure:
    return Figure(figsize=(0.1, 0.1))


@pytest.fixture
def real_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the figures of forecasts as the service does."""
    monkeypatch.setattr(figure, "forecast_figure", REAL_FIGURE)
