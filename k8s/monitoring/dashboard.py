"""The Grafana dashboard: what conversion, training and the service are at, panel by panel.

python k8s/monitoring/dashboard.py > k8s/monitoring/dashboard.json
"""

import json
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 8, 7  # of a panel, three to a row of Grafana's 24 columns
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    """A curve for each value of the labels in `legend`; `unit` by Grafana's name of it."""

    title: str
    query: str
    legend: str = ""
    unit: str = "short"


TRAIN = "max by (run)"
ROWS = {
    "Training": (
        Panel("Loss", f"{TRAIN} (ray_lesioncast_train_loss)", "{{run}}"),
        Panel("Steps", f"{TRAIN} (ray_lesioncast_train_step)", "{{run}}"),
        Panel("Steps a second", f"{TRAIN} (ray_lesioncast_train_steps_per_second)", "{{run}}"),
        Panel(
            "Time spent waiting for cases",
            f"{TRAIN} (ray_lesioncast_train_data_wait)",
            "{{run}}",
            "percentunit",
        ),
        Panel(
            "Seconds a checkpoint",
            "sum by (run) (rate(ray_lesioncast_train_checkpoint_seconds_total[1h]))"
            " / sum by (run) (rate(ray_lesioncast_train_checkpoints_total[1h]))",
            "{{run}}",
            "s",
        ),
        Panel("GPU memory", f"{TRAIN} (ray_lesioncast_train_gpu_bytes)", "{{run}}", "bytes"),
    ),
    "Conversion": (
        Panel(
            "Subjects a second",
            "sum(rate(ray_lesioncast_converted_subjects_total[1m]))",
            unit="ops",
        ),
        Panel(
            "Ray's objects",
            "sum by (Location) (ray_object_store_memory)",
            "{{Location}}",
            "bytes",
        ),
    ),
    "Forecasts": (
        Panel("Forecasts not ended", "sum(ray_lesioncast_unfinished)"),
        Panel("Age of the oldest", "max(ray_lesioncast_oldest_seconds)", unit="s"),
        Panel(
            "Forecasts ended",
            "sum by (state) (rate(ray_lesioncast_forecasts_total[5m]))",
            "{{state}}",
            "ops",
        ),
        Panel(
            "Half of the forecasts take at most",
            "histogram_quantile(0.5, "
            "sum by (le) (rate(ray_lesioncast_forecast_seconds_bucket[15m])))",
            unit="s",
        ),
        Panel(
            "Half of the first samples are there after",
            "histogram_quantile(0.5, "
            "sum by (le) (rate(ray_lesioncast_first_samples_seconds_bucket[15m])))",
            unit="s",
        ),
        Panel(
            "Samples a second",
            "sum by (arm) (rate(ray_lesioncast_samples_total[1m]))",
            "{{arm}}",
            "ops",
        ),
        Panel(
            "Seconds a step of the batch",
            "sum(rate(ray_lesioncast_step_seconds_total[1m]))"
            " / sum(rate(ray_lesioncast_steps_total[1m]))",
            unit="s",
        ),
        Panel(
            "95 % of the steps take at most",
            "histogram_quantile(0.95, "
            "sum by (le) (rate(ray_lesioncast_step_duration_seconds_bucket[5m])))",
            unit="s",
        ),
        Panel(
            "Samples in a batch",
            "sum(rate(ray_lesioncast_rows_total[1m])) / sum(rate(ray_lesioncast_steps_total[1m]))",
        ),
        Panel("Slots in use", "sum(ray_lesioncast_slots_in_use)"),
        Panel("Samples without a slot", "sum(ray_lesioncast_samples_waiting)"),
        Panel(
            "Errors of forecasts",
            "sum by (error, outcome) (rate(ray_lesioncast_errors_total[5m]))",
            "{{error}}, {{outcome}}",
            "ops",
        ),
        Panel(
            "Problems answered",
            "sum by (status) (rate(ray_lesioncast_problems_total[5m]))",
            "{{status}}",
            "ops",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """As Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        )
        top += 1
        for place, panel in enumerate(row):
            left, down = place % 3 * WIDTH, place // 3 * HEIGHT
            panels.append(_drawn(panel, {"x": left, "y": top + down, "w": WIDTH, "h": HEIGHT}))
        top += -(-len(row) // 3) * HEIGHT
    return {
        "title": "lesioncast",
        "uid": "lesioncast",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _drawn(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": "A",
                "datasource": SOURCE,
                "expr": panel.query,
                "legendFormat": panel.legend or panel.title,
            }
        ],
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
