"""Prometheus metrics of the service; every metric is declared here.

Ray exports them per node. It puts `ray_` before each name, appends `_total` to counters, and adds
the labels of deployment and replica. No metric is labelled by subject, seed or request. Ray's
histograms have no exact sum, so that seconds are also counted.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from ray.serve import metrics

from serve.inference.reports import StepStats

LATENCY_BUCKETS_S = [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800]
STEP_BUCKETS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]


class EngineMetrics:
    """Metrics of one sampler replica. `arms` are the arm names, by index."""

    def __init__(self, arms: Sequence[str]) -> None:
        self._arms = arms
        self._running = metrics.Gauge("lesioncast_slots_in_use", "Samples in the running batch.")
        self._waiting = metrics.Gauge(
            "lesioncast_samples_waiting", "Samples that wait for a slot in the running batch."
        )
        self._steps = metrics.Counter("lesioncast_steps", "Forward passes of the running batch.")
        self._rows = metrics.Counter(
            "lesioncast_batch_rows",
            "Samples in all forward passes; divided by the passes, the mean batch size.",
        )
        self._seconds = metrics.Counter("lesioncast_step_seconds", "Seconds in forward passes.")
        self._durations = metrics.Histogram(
            "lesioncast_step_duration_seconds",
            "Duration of a forward pass in seconds.",
            boundaries=STEP_BUCKETS_S,
        )
        self._samples = metrics.Counter("lesioncast_samples", "Samples drawn.", tag_keys=("arm",))

    def on_step(self, step: StepStats) -> None:
        """Record one step of the engine."""
        self._running.set(step.running)
        self._waiting.set(step.waiting)
        if step.rows:
            self._steps.inc()
            self._rows.inc(step.rows)
            # Ray refuses to increase a counter by 0, which a coarse clock can measure.
            self._seconds.inc(max(step.seconds, 1e-9))
            self._durations.observe(step.seconds)
        for arm, samples in Counter(step.finished).items():
            self._samples.inc(samples, tags={"arm": self._arms[arm]})


class ForecastMetrics:
    """Metrics of the forecast worker."""

    def __init__(self) -> None:
        self._pending = metrics.Gauge(
            "lesioncast_forecasts_pending", "Forecasts that are accepted and not finished."
        )
        self._oldest = metrics.Gauge(
            "lesioncast_oldest_pending_seconds",
            "Seconds since the oldest pending forecast was accepted; 0 without any.",
        )
        self._first = metrics.Histogram(
            "lesioncast_first_samples_seconds",
            "Seconds from acceptance to the first partial result.",
            boundaries=LATENCY_BUCKETS_S,
        )
        self._latency = metrics.Histogram(
            "lesioncast_forecast_seconds",
            "Seconds from acceptance to the result.",
            boundaries=LATENCY_BUCKETS_S,
        )
        self._finished = _finished_counter()
        self._warnings = metrics.Counter(
            "lesioncast_forecast_warnings",
            "Finished forecasts with a warning, by its code, such as untypical_patient.",
            tag_keys=("code",),
        )
        self._errors = metrics.Counter(
            "lesioncast_errors",
            "Errors that failed or postponed a forecast, by type.",
            tag_keys=("error", "outcome"),  # type: ignore[arg-type]  # Ray's stub allows only one
        )

    def set_backlog(self, pending: int, oldest_seconds: float) -> None:
        """Set the number of pending forecasts and the age of the oldest."""
        self._pending.set(pending)
        self._oldest.set(oldest_seconds)

    def observe_first_samples(self, seconds: float) -> None:
        """Record the time from acceptance to the first samples of a forecast."""
        self._first.observe(seconds)

    def observe_finished(self, state: str, seconds: float) -> None:
        """Count a finished forecast, and record the latency of one that succeeded."""
        self._finished.inc(tags={"state": state})
        if state == "succeeded":
            self._latency.observe(seconds)

    def count_warnings(self, codes: Iterable[str]) -> None:
        """Count a finished forecast once for each code among its warnings."""
        for code in set(codes):
            self._warnings.inc(tags={"code": code})

    def count_error(self, error: str, outcome: str) -> None:
        """Count an error of type `error`; `outcome` is `failed` or `postponed`."""
        self._errors.inc(tags={"error": error, "outcome": outcome})


class RequestMetrics:
    """Metrics of one HTTP replica."""

    def __init__(self) -> None:
        self._problems = metrics.Counter(
            "lesioncast_http_problems",
            "Requests answered by a problem document, by status.",
            tag_keys=("status",),
        )
        self._finished = _finished_counter()

    def count_problem(self, status: int) -> None:
        """Count a request that was answered by a problem document."""
        self._problems.inc(tags={"status": str(status)})

    def count_cancelled(self) -> None:
        """Count a forecast that its client cancelled."""
        self._finished.inc(tags={"state": "cancelled"})


def _finished_counter() -> metrics.Counter:
    """Declare the counter of finished forecasts.

    HTTP replicas count the cancelled ones, the forecast worker counts all others.
    """
    return metrics.Counter("lesioncast_forecasts", "Finished forecasts.", tag_keys=("state",))
