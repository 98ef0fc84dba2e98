"""Run Prometheus with the alerts on the Ray cluster of this machine: `make observe`.

    python k8s/monitoring/observe.py --out out/observe

`ray start` lists its exporters in the folder of its `--temp-dir`. If Grafana is installed, import
dashboard.json with http://127.0.0.1:9090 as the data source.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ADDRESS = "127.0.0.1:9090"


def main() -> None:
    """Write the configuration and run Prometheus; exit with code 1 if it is not installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the recorded series")
    parser.add_argument(
        "--temp-dir", type=Path, default=Path("/tmp/ray"), help="the --temp-dir of ray start"
    )
    args = parser.parse_args()
    out = args.out.absolute()
    config = write_config(out, args.temp_dir.absolute())
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        sys.exit("expected prometheus, got none on PATH; on Debian: apt-get install prometheus")
    print(f"http://{ADDRESS}, alerts at http://{ADDRESS}/alerts; end with Ctrl-C", flush=True)
    options = [f"--storage.tsdb.path={out / 'series'}", f"--web.listen-address={ADDRESS}"]
    # Replace this process, so that Ctrl-C reaches Prometheus itself.
    os.execv(prometheus, [prometheus, f"--config.file={config}", *options])


def write_config(out: Path, ray: Path) -> Path:
    """Write the configuration of Prometheus and the alert rules below `out`. Returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    groups = yaml.safe_load((HERE / "alerts.yaml").read_text())["spec"]["groups"]
    (out / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    exporters = {"files": [str(ray / "prom_metrics_service_discovery.json")]}
    config = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [str(out / "rules.yaml")],
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [exporters]}],
    }
    path = out / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


if __name__ == "__main__":
    main()
