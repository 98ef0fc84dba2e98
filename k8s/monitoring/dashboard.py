"""The Grafana dashboard: panels for training, conversion and the forecast service.

python k8s/monitoring/dashboard.py > k8s/monitoring/dashboard.json
"""

import json
import math
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 8, 7  # of a panel: three fill a row of Grafana's 24 columns
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    """A panel with a curve for each value of the labels in `legend`; `unit` is Grafana's name."""

    title: str
    query: str
    legend: str = ""
    unit: str = "short"


TRAIN = "max by (run)"
ROWS = {
    "Training": (
        Panel("Loss", f"{TRAIN} (ray_lesioncast_train_loss)", "{{run}}"),
        Panel("Steps", f"{TRAIN} (ray_lesioncast_train_step)", "{{run}}"),
        Panel("Steps per second", f"{TRAIN} (ray_lesioncast_train_steps_per_second)", "{{run}}"),
        Panel(
            "Time spent waiting for cases",
            f"{TRAIN} (ray_lesioncast_train_data_wait)",
            "{{run}}",
            "percentunit",
        ),
        Panel(
            "Time per checkpoint",
            "sum by (run) (rate(ray_lesioncast_train_checkpoint_seconds_total[1h]))"
            " / sum by (run) (rate(ray_lesioncast_train_checkpoints_total[1h]))",
            "{{run}}",
            "s",
        ),
        Panel("GPU memory", f"{TRAIN} (ray_lesioncast_train_gpu_bytes)", "{{run}}", "bytes"),
    ),
    "Conversion": (
        Panel(
            "Subjects per second",
            "sum(rate(ray_lesioncast_converted_subjects_total[1m]))",
            unit="ops",
        ),
        Panel(
            "Ray object store",
            "sum by (Location) (ray_object_store_memory)",
            "{{Location}}",
            "bytes",
        ),
    ),
    "Forecasts": (
        Panel("Pending forecasts", "sum(ray_lesioncast_forecasts_pending)"),
        Panel(
            "Age of the oldest pending forecast",
            "max(ray_lesioncast_oldest_pending_seconds)",
            unit="s",
        ),
        Panel(
            "Finished forecasts",
            "sum by (state) (rate(ray_lesioncast_forecasts_total[5m]))",
            "{{state}}",
            "ops",
        ),
        Panel(
            "Time to the result, median",
            "histogram_quantile(0.5, "
            "sum by (le) (rate(ray_lesioncast_forecast_seconds_bucket[15m])))",
            unit="s",
        ),
        Panel(
            "Time to the first samples, median",
            "histogram_quantile(0.5, "
            "sum by (le) (rate(ray_lesioncast_first_samples_seconds_bucket[15m])))",
            unit="s",
        ),
        Panel(
            "Samples per second",
            "sum by (arm) (rate(ray_lesioncast_samples_total[1m]))",
            "{{arm}}",
            "ops",
        ),
        Panel(
            "Step of the batch, mean",
            "sum(rate(ray_lesioncast_step_seconds_total[1m]))"
            " / sum(rate(ray_lesioncast_steps_total[1m]))",
            unit="s",
        ),
        Panel(
            "Step of the batch, 95th percentile",
            "histogram_quantile(0.95, "
            "sum by (le) (rate(ray_lesioncast_step_duration_seconds_bucket[5m])))",
            unit="s",
        ),
        Panel(
            "Mean batch size",
            "sum(rate(ray_lesioncast_batch_rows_total[1m]))"
            " / sum(rate(ray_lesioncast_steps_total[1m]))",
        ),
        Panel("Slots in use", "sum(ray_lesioncast_slots_in_use)"),
        Panel("Samples waiting for a slot", "sum(ray_lesioncast_samples_waiting)"),
        Panel(
            "Forecast errors",
            "sum by (error, outcome) (rate(ray_lesioncast_errors_total[5m]))",
            "{{error}}, {{outcome}}",
            "ops",
        ),
        Panel(
            "HTTP problems",
            "sum by (status) (rate(ray_lesioncast_http_problems_total[5m]))",
            "{{status}}",
            "ops",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard in the form that Grafana imports."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        )
        top += 1
        for index, panel in enumerate(row):
            left, down = index % 3 * WIDTH, index // 3 * HEIGHT
            panels.append(_panel_json(panel, {"x": left, "y": top + down, "w": WIDTH, "h": HEIGHT}))
        top += math.ceil(len(row) / 3) * HEIGHT
    return {
        "title": "lesioncast",
        "uid": "lesioncast",
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _panel_json(panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": position,
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
