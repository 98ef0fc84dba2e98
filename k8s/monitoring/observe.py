"""Debian's Prometheus on the Ray cluster of this machine, with the alerts: `make observe`.

    python k8s/monitoring/observe.py --out out/observe

Any cluster of `ray start` lists its exporters in the folder of `--temp-dir`. Grafana, where it is
installed, takes dashboard.json with http://127.0.0.1:9090 as its source.
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
    """Writes the configuration and becomes Prometheus; exit code 1 where there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where series are kept")
    parser.add_argument("--temp-dir", type=Path, default=Path("/tmp/ray"), help="of ray start")
    args = parser.parse_args()
    out = args.out.absolute()
    config = write_config(out, args.temp_dir.absolute())
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        sys.exit("expected prometheus, got none on PATH; on Debian: apt-get install prometheus")
    print(f"http://{ADDRESS}, alerts at http://{ADDRESS}/alerts; end with Ctrl-C", flush=True)
    options = [f"--storage.tsdb.path={out / 'series'}", f"--web.listen-address={ADDRESS}"]
    os.execv(prometheus, [prometheus, f"--config.file={config}", *options])


def write_config(out: Path, ray: Path) -> Path:
    """Prometheus' configuration below `out`: Ray's exporters, and the alerts without Kubernetes."""
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
