"""What the service measures, in Prometheus form: every metric is declared here.

Ray exports them per node under the prefix `ray_` with deployment and replica as labels. None is
labelled by subject, seed or request. Ray's histograms have no exact sum, so that seconds are also
counted.
"""

from collections import Counter
from collections.abc import Sequence

from ray.serve import metrics

from serve.inference.sampler import StepStats

LATENCY_BUCKETS_S = [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800]  # seconds
STEP_BUCKETS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]  # seconds


class EngineMetrics:
    """Of one sampler replica; `arms` are the names of those that a step tells by number."""

    def __init__(self, arms: Sequence[str]) -> None:
        self._arms = arms
        self._running = metrics.Gauge("lesioncast_slots_in_use", "Samples in the running batch.")
        self._waiting = metrics.Gauge("lesioncast_samples_waiting", "Samples without a slot.")
        self._steps = metrics.Counter("lesioncast_steps", "Forward passes of the running batch.")
        self._rows = metrics.Counter(
            "lesioncast_rows", "Samples in those; by the passes, the mean size of a batch."
        )
        self._seconds = metrics.Counter("lesioncast_step_seconds", "Seconds in those.")
        self._durations = metrics.Histogram(
            "lesioncast_step_duration_seconds",
            "Seconds of each of those.",
            boundaries=STEP_BUCKETS_S,
        )
        self._samples = metrics.Counter("lesioncast_samples", "Samples drawn.", tag_keys=("arm",))

    def on_step(self, step: StepStats) -> None:
        """After each step."""
        self._running.set(step.running)
        self._waiting.set(step.waiting)
        if step.rows:
            self._steps.inc()
            self._rows.inc(step.rows)
            self._seconds.inc(max(step.seconds, 1e-9))
            self._durations.observe(step.seconds)
        for arm, number in Counter(step.finished).items():
            self._samples.inc(number, tags={"arm": self._arms[arm]})


class ForecastMetrics:
    """Of the forecaster."""

    def __init__(self) -> None:
        self._unfinished = metrics.Gauge("lesioncast_unfinished", "Forecasts accepted, not ended.")
        self._oldest = metrics.Gauge(
            "lesioncast_oldest_seconds", "Since the oldest of them was accepted; 0 without any."
        )
        self._first = metrics.Histogram(
            "lesioncast_first_samples_seconds",
            "From acceptance to the first partial result.",
            boundaries=LATENCY_BUCKETS_S,
        )
        self._latency = metrics.Histogram(
            "lesioncast_forecast_seconds",
            "From acceptance to result.",
            boundaries=LATENCY_BUCKETS_S,
        )
        self._ended = _finished_counter()
        self._errors = metrics.Counter(
            "lesioncast_errors",
            "Errors that failed a forecast or postponed it, by their type.",
            tag_keys=("error", "outcome"),  # type: ignore[arg-type]  # any number, not one
        )

    def set_backlog(self, number: int, oldest: float) -> None:
        """As the records say: how many, and the age of the oldest in seconds."""
        self._unfinished.set(number)
        self._oldest.set(oldest)

    def observe_first_samples(self, seconds: float) -> None:
        """The first samples of a forecast are there."""
        self._first.observe(seconds)

    def observe_finished(self, state: str, seconds: float) -> None:
        """One forecast that came to an end."""
        self._ended.inc(tags={"state": state})
        if state == "succeeded":
            self._latency.observe(seconds)

    def count_error(self, error: str, outcome: str) -> None:
        """An error of that type made a forecast `failed` or `postponed`."""
        self._errors.inc(tags={"error": error, "outcome": outcome})


class RequestMetrics:
    """Of one ingress replica."""

    def __init__(self) -> None:
        self._problems = metrics.Counter(
            "lesioncast_problems", "Problems answered, by their status.", tag_keys=("status",)
        )
        self._ended = _finished_counter()

    def count_problem(self, status: int) -> None:
        """A request was answered by a problem."""
        self._problems.inc(tags={"status": str(status)})

    def cancelled(self) -> None:
        """A client ended a forecast."""
        self._ended.inc(tags={"state": "cancelled"})


def _finished_counter() -> metrics.Counter:
    """Cancelled ones are counted by the ingress, the others by the forecaster."""
    return metrics.Counter("lesioncast_forecasts", "Forecasts ended.", tag_keys=("state",))
