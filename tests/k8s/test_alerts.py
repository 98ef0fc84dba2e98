"""Alerts fire on recorded series, and use metrics that Ray and lesioncast declare."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import yaml

from tests.support.manifests import ROOT, one

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not installed (Debian: prometheus): the alerts were not tested",
)
SERIES = ROOT / "tests/k8s/recorded_series.yaml"
DEFINED_IN = ("train/v2/_internal/metrics", "serve/_private")


def try_alerts(folder: Path, rules: str) -> "subprocess.CompletedProcess[str]":
    (folder / "rules.yaml").write_text(rules)
    shutil.copy(SERIES, folder)
    command = [str(PROMTOOL), "test", "rules", SERIES.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def shipped_rules() -> str:
    groups = one("gpu", "PrometheusRule", "lesioncast")["spec"]["groups"]
    return yaml.safe_dump({"groups": groups})


@needs_promtool
def test_alerts_fire_only_where_the_recorded_series_say(tmp_path: Path) -> None:
    done = try_alerts(tmp_path, shipped_rules())
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("text", "replacement"),
    [
        ("== 0", "== 1"), ("> 3", "> 30"), ("0.15", "0.5"), ("> 10", "> 1"), ("> 1800", "> 600"),
        ("pending) > 0", "pending) >= 0"), ("unless", "and"), ("0.05", "0.01"),
        ("0.05", "0.2"),
    ],
)  # fmt: skip
def test_the_recorded_series_detect_other_thresholds(
    tmp_path: Path, text: str, replacement: str
) -> None:
    rules = shipped_rules()
    assert text in rules
    assert try_alerts(tmp_path, rules.replace(text, replacement)).returncode != 0


def test_every_metric_of_an_alert_is_defined_in_ray() -> None:
    package = Path(ray.__file__).parent
    source = "".join(
        path.read_text() for folder in DEFINED_IN for path in (package / folder).rglob("*.py")
    )
    source = source.replace("num_{protocol_name}_", "num_http_")
    names = set(re.findall(r"\bray_((?:serve|train)_\w+)(?=[\[{)])", shipped_rules()))
    names -= {"train_run_name"}  # a label
    assert len(names) == 7
    for name in names:
        assert f'"{re.sub(r"_(total|count)$", "", name)}"' in source, name


def declarations() -> str:
    paths = ("platform/lesioncast/cluster/metrics.py", "serve/metrics.py")
    return "".join((ROOT / path).read_text() for path in paths)


def test_every_other_metric_of_an_alert_is_declared_by_lesioncast() -> None:
    names = set(re.findall(r"\bray_(lesioncast_\w+)", shipped_rules()))
    assert len(names) == 4
    for name in names:
        assert f'"{name.removesuffix("_total")}"' in declarations(), name


def test_the_dashboard_matches_its_script_and_uses_declared_metrics() -> None:
    folder = ROOT / "k8s/monitoring"
    printed = subprocess.run(
        [sys.executable, folder / "dashboard.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (folder / "dashboard.json").read_text() == printed
    used = set(re.findall(r"\bray_(lesioncast_\w+)", printed))
    assert len(used) == 22
    for name in used:
        assert f'"{re.sub(r"_(total|bucket)$", "", name)}"' in declarations(), name


@needs_promtool
def test_prometheus_accepts_the_configuration_for_a_local_cluster(
    tmp_path: Path,
) -> None:
    path = runpy.run_path(str(ROOT / "k8s/monitoring/observe.py"))["write_config"](
        tmp_path, tmp_path
    )
    command = [str(PROMTOOL), "check", "config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
