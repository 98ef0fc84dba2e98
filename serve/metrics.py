"""What the service measures, in Prometheus form: every metric is declared here.

Ray exports them per node under the prefix `ray_` with deployment and replica as labels. None is
labelled by subject, seed or request. Ray's histograms have no exact sum, so that seconds are also
counted.
"""

from ray.serve import metrics

from serve.sampler import Step

BOUNDARIES = [0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800]


class EngineMetrics:
    """Of one sampler replica."""

    def __init__(self) -> None:
        self._running = metrics.Gauge("lesioncast_slots_in_use", "Samples in the running batch.")
        self._waiting = metrics.Gauge("lesioncast_samples_waiting", "Samples without a slot.")
        self._steps = metrics.Counter("lesioncast_steps", "Steps of the running batch.")
        self._seconds = metrics.Counter("lesioncast_step_seconds", "Seconds in steps.")
        self._samples = metrics.Counter("lesioncast_samples", "Samples drawn.")

    def stepped(self, step: Step) -> None:
        """After each step."""
        self._running.set(step.running)
        self._waiting.set(step.waiting)
        self._steps.inc()
        self._seconds.inc(max(step.seconds, 1e-9))
        if step.finished:
            self._samples.inc(step.finished)


class ForecastMetrics:
    """Of the forecaster."""

    def __init__(self) -> None:
        self._unfinished = metrics.Gauge("lesioncast_unfinished", "Forecasts accepted, not ended.")
        self._oldest = metrics.Gauge(
            "lesioncast_oldest_seconds", "Since the oldest of them was accepted; 0 without any."
        )
        self._ended = metrics.Counter(
            "lesioncast_forecasts", "Forecasts ended.", tag_keys=("state",)
        )
        self._latency = metrics.Histogram(
            "lesioncast_forecast_seconds", "From acceptance to result.", boundaries=BOUNDARIES
        )

    def waiting(self, number: int, oldest: float) -> None:
        """As the records say: how many, and the age of the oldest in seconds."""
        self._unfinished.set(number)
        self._oldest.set(oldest)

    def ended(self, state: str, seconds: float) -> None:
        """One forecast that came to an end."""
        self._ended.inc(tags={"state": state})
        self._latency.observe(seconds)
