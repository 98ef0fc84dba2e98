"""What jobs measure as they run, in Prometheus form: every metric of theirs is declared here.

Ray exports them per node under the prefix `ray_`, counters with the suffix `_total`; those of the
service are in `serve.metrics`. Rates of a counter outlive a restart, so seconds are counted.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

MIN_INCREMENT = 1e-9  # a counter refuses to grow by nothing


class ConversionMetrics:
    """Of the driver of a conversion."""

    def __init__(self) -> None:
        self._subjects = Counter("lesioncast_converted_subjects", "Subjects put into the store.")

    def converted(self, subjects: int) -> None:
        """One more shard, with so many subjects."""
        self._subjects.inc(max(subjects, MIN_INCREMENT))


class TrainingMetrics:
    """Of the worker that leads the stage `run`, such as pretrain."""

    def __init__(self, run: str) -> None:
        tags = {"tag_keys": ("run",)}
        self._gauges = {
            "step": Gauge("lesioncast_train_step", "Steps done.", **tags),
            "loss": Gauge("lesioncast_train_loss", "Mean since the last report.", **tags),
            "gradient_norm": Gauge("lesioncast_train_gradient_norm", "Before clipping.", **tags),
            "learning_rate": Gauge("lesioncast_train_learning_rate", "Of the last step.", **tags),
            "steps_per_s": Gauge("lesioncast_train_steps_per_second", "Of all workers.", **tags),
            "data_wait": Gauge(
                "lesioncast_train_data_wait", "Share of time spent waiting for cases.", **tags
            ),
            "gpu_bytes": Gauge("lesioncast_train_gpu_bytes", "Largest so far, a worker.", **tags),
        }
        self._saves = Counter("lesioncast_train_checkpoints", "Checkpoints saved.", **tags)
        self._saving = Counter("lesioncast_train_checkpoint_seconds", "Spent saving them.", **tags)
        for metric in (*self._gauges.values(), self._saves, self._saving):
            metric.set_default_tags({"run": run})

    def reported(self, metrics: Mapping[str, float]) -> None:
        """The figures of a report."""
        for name, value in metrics.items():
            if name in self._gauges:
                self._gauges[name].set(value)

    def saved(self, seconds: float) -> None:
        """One more checkpoint."""
        self._saves.inc()
        self._saving.inc(max(seconds, MIN_INCREMENT))
