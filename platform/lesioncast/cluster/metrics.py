"""Prometheus metrics of the jobs; those of the service are in `serve.metrics`.

Ray exports them on each node with the prefix `ray_`, and counters with the suffix `_total`.
Durations are counters of seconds, because a counter's rate survives a restart of the process.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

MIN_INCREMENT = 1e-9  # Ray's counters reject an increment of 0


class ConversionMetrics:
    """Metrics of the driver of a conversion."""

    def __init__(self) -> None:
        self._subjects = Counter("lesioncast_converted_subjects", "Subjects put into the store.")

    def converted(self, subjects: int) -> None:
        """Count the subjects of one more shard."""
        self._subjects.inc(max(subjects, MIN_INCREMENT))


class TrainingMetrics:
    """Metrics of the rank-zero worker of the training stage `run`, such as pretrain."""

    def __init__(self, run: str) -> None:
        tags = {"tag_keys": ("run",)}
        self._gauges = {
            "step": Gauge("lesioncast_train_step", "Optimizer steps done.", **tags),
            "loss": Gauge("lesioncast_train_loss", "Mean loss since the last report.", **tags),
            "gradient_norm": Gauge(
                "lesioncast_train_gradient_norm", "Gradient norm before clipping.", **tags
            ),
            "learning_rate": Gauge(
                "lesioncast_train_learning_rate", "Learning rate of the last step.", **tags
            ),
            "steps_per_s": Gauge(
                "lesioncast_train_steps_per_second", "Steps per second of all workers.", **tags
            ),
            "data_wait": Gauge(
                "lesioncast_train_data_wait", "Share of time spent waiting for cases.", **tags
            ),
            "gpu_bytes": Gauge(
                "lesioncast_train_gpu_bytes", "Peak GPU memory of a worker.", **tags
            ),
        }
        self._saves = Counter("lesioncast_train_checkpoints", "Checkpoints saved.", **tags)
        self._saving = Counter(
            "lesioncast_train_checkpoint_seconds", "Seconds spent saving checkpoints.", **tags
        )
        for metric in (*self._gauges.values(), self._saves, self._saving):
            metric.set_default_tags({"run": run})

    def reported(self, metrics: Mapping[str, float]) -> None:
        """Set the gauges to the values of a report."""
        for name, value in metrics.items():
            if name in self._gauges:
                self._gauges[name].set(value)

    def saved(self, seconds: float) -> None:
        """Count one more checkpoint and the seconds that it took to save."""
        self._saves.inc()
        self._saving.inc(max(seconds, MIN_INCREMENT))
