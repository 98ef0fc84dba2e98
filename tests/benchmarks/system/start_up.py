"""Measure how long commands take until they answer, in turn, in processor and wall-clock time.

    PYTHONPATH=.:platform python tests/benchmarks/system/start_up.py --bundle out/demo/bundle \
        --store out/demo/store.zarr [--rounds 3] [--service]

Each round starts every command once, in a new process: `--help`, the configurations of a job
without and of one with networks, and a forecast of one patient, from Python in memory and from the
command line with its files and its figure. `--service` also waits until the service answers that it
is ready. The processor time is that of the process and of the children that it waited for; that of
the service is of all its processes at that moment. The table gives medians, least and most.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import yaml

from storage import open_store
from tests.benchmarks.system.full_width import Usage, run
from tests.support.ray_clusters import free_ports

ROOT = Path(__file__).resolve().parents[3]
POLL = 0.2  # seconds
CONFIGURATION = (
    "import lesioncast.jobs.{0}; from lesioncast.config import load_config; "
    "from lesioncast.jobs.command.arguments import config_path; load_config(config_path('demo'))"
)
IN_MEMORY = (
    "import lesioncast; from lesioncast.forecasting.settings import ForecastSettings; "
    "model = lesioncast.load_bundle({bundle!r}); "
    "model.forecast_case({store!r}, {subject!r}, settings=ForecastSettings(samples=16))"
)


def commands(bundle: Path, store: Path, out: Path) -> Mapping[str, list[str]]:
    """Return the command lines by what they do."""
    subject = open_store(store).select(split="test")[0].subject
    in_memory = IN_MEMORY.format(bundle=str(bundle), store=str(store), subject=subject)
    forecast = ["--config=demo", f"--bundle={bundle}", f"--store={store}", f"--out={out}"]
    return {
        "lesioncast --help": ["-m", "lesioncast.cli", "--help"],
        "configuration of convert": ["-c", CONFIGURATION.format("convert")],
        "configuration of pretrain": ["-c", CONFIGURATION.format("pretrain")],
        "one patient in memory": ["-c", in_memory],
        "forecast --local, one patient": [
            *("-m", "lesioncast.cli", "forecast", *forecast, f"--subjects={subject}", "--local"),
            "--set=forecast.sessions=[]",
        ],
    }


def service_start(bundle: Path, store: Path, out: Path) -> Usage:
    """Start the service, stop it as soon as it is ready, and return what it took until then."""
    (port,) = free_ports(1)
    settings = yaml.safe_load((ROOT / "serve" / "service.yaml").read_text())
    settings["http_options"]["port"] = port
    settings["applications"][0]["args"] = {
        "bundle": str(bundle), "store": str(store), "artifacts": str(out / "serve"), "demo": True,
    }  # fmt: skip
    path = out / "service.yaml"
    path.write_text(yaml.safe_dump(settings))
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "lesioncast.cli", "serve", str(path)], stdout=subprocess.DEVNULL
    )
    try:
        while not is_ready(f"http://127.0.0.1:{port}/v2/health/ready"):
            if process.poll() is not None:
                raise SystemExit(f"expected a service, got its exit code {process.returncode}")
            time.sleep(POLL)
        return Usage(time.monotonic() - started, *usage_of_tree(process.pid), killed=True)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def is_ready(url: str) -> bool:
    """Return True if the service answers that it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def usage_of_tree(root: int) -> tuple[float, float]:
    """Return processor seconds and resident GiB of a process and its descendants."""
    children, usage = defaultdict(list), {}
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        children[int(fields[1])].append(int(folder.name))
        seconds = sum(map(int, fields[11:15])) / tick
        usage[int(folder.name)] = (seconds, int(fields[21]) * page / 2**30)
    tree = [root]
    for parent in tree:  # grows while it is read
        tree += children[parent]
    used = [usage[pid] for pid in tree if pid in usage]
    return sum(seconds for seconds, _ in used), sum(memory for _, memory in used)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--service", action="store_true", help="also start the service")
    args = parser.parse_args(argv)
    bundle, store = args.bundle.absolute(), args.store.absolute()
    found: defaultdict[str, list[Usage]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        parts: dict[str, Callable[[], Usage]] = {
            name: (lambda line=line: run([sys.executable, *line]))
            for name, line in commands(bundle, store, out).items()
        }
        if args.service:
            parts["service, until ready"] = lambda: service_start(bundle, store, out)
        for number in range(args.rounds):
            print(f"round {number + 1}, load average {os.getloadavg()[0]:.1f}", flush=True)
            for name, measure in parts.items():
                found[name].append(measure())
    print("\n| | processor | wall | memory |\n|---|---|---|---|")
    for name, used in found.items():
        cells = (
            spread([usage.processor for usage in used], "s"),
            spread([usage.wall for usage in used], "s"),
            spread([usage.memory for usage in used], "GiB"),
        )
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: Sequence[float], unit: str) -> str:
    """Return median, least and most of the values as text."""
    return f"{median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
