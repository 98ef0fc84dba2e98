"""Take the paper's networks once from end to end: two steps of each stage with a kill, one sample.

    PYTHONPATH=.:platform python tests/benchmarks/system/full_width.py --out out/full_width

The training jobs run as their commands do, on a small simulated trial at the configuration's slab,
with one case a step, in float32 and in one process on the CPU. Each stage is killed by SIGKILL as
soon as its first checkpoint is there, and the same command then resumes it to its second step. The
bundle then samples one subject under one arm. A table gives the seconds, the processor's seconds
and the largest resident memory of each part.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesioncast import load_bundle
from lesioncast.config import Config, load_config
from lesioncast.errors import LesioncastError
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.jobs.command.arguments import config_path
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from storage import open_store
from storage.convert.build_shard import build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion

ROOT = Path(__file__).resolve().parents[3]
POLL = 0.2  # seconds
STAGES = ("pretrain", "finetune")
HEAD = "| part | wall | processor | memory | |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Usage:
    """What one process used."""

    #: Seconds from its start to its end, and seconds of the processor.
    wall: float
    processor: float
    #: Largest resident memory in GiB.
    memory: float
    killed: bool


def overrides(steps: int, *, subjects: int, solver_steps: int) -> list[str]:
    """Return the keys that make a configuration small in all but the networks and the slab."""
    small = {
        "batch_size": 1,
        "checkpoint_every": 1,
        "workers": 0,
        "steps": steps,
        "precision": "float32",
        "accelerator_type": "null",
    }
    return [
        f"simulation.subjects={subjects}",
        "store.split_fractions=[0.8,0.1,0.1]",
        *(f"{stage}.{key}={value}" for stage in STAGES for key, value in small.items()),
        f"sampler.num_steps={solver_steps}",
    ]


def run(command: Sequence[str], *, until: Callable[[], bool] | None = None) -> Usage:
    """Run a command to its end, or kill it as soon as `until` holds; return what it used.

    Raise SystemExit if it fails by itself.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    killed = False
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if until is not None and not killed and until():
            process.send_signal(signal.SIGKILL)
            killed = True
        time.sleep(POLL)
    # Known to `process` from here on, so that it waits for no other process of this number.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not killed:
        raise SystemExit(f"expected exit code 0, got {process.returncode}: {' '.join(command)}")
    return Usage(
        time.monotonic() - started,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 2**20,
        killed,
    )


def parameters(bundle: Path) -> int:
    """Return the number of weights of both networks of a bundle."""
    model = load_bundle(bundle).bundle.model
    networks = (model.unet, model.control)
    return sum(weight.numel() for network in networks for weight in network.parameters())


def write_store(config: Config) -> None:
    """Simulate the trial and convert it, in this process."""
    bids = config.paths.bids
    write_subjects(bids, config.simulation, initialise_dataset(bids, config.simulation))
    finalise_dataset(bids, config.simulation)
    plan = plan_conversion(
        bids, config.paths.store, settings=config.store, arms=config.arms, seed=config.seed
    )
    convert(plan, build=lambda tasks: map(build_shard, tasks))


def sample(config: Config) -> None:
    """Sample the first test subject under the reference arm, and print what was drawn."""
    store = open_store(config.paths.store)
    arm = config.forecast.reference_arm
    settings = ForecastSettings(samples=2, batch_size=1, reference_arm=arm)
    model = load_bundle(config.paths.bundle)
    case = store.select(split="test")[0]
    forecast = model.forecast_case(store, case.subject, arms=[arm], settings=settings)
    counts = forecast.arms[arm].lesion_counts.tolist()
    print(f"{case.subject}, {arm}: {counts} lesions in two samples", file=sys.stderr)


PARTS = {"store": write_store, "sample": sample}


def stages(config: Config, command: Callable[..., list[str]]) -> Iterable[tuple[str, Usage]]:
    """Run both stages, each killed after its first checkpoint and resumed; yield each part."""
    for stage in STAGES:
        run_folder = config.paths.runs / stage
        first = run_folder / "step_000001"
        yield (
            f"{stage}, step 1 and checkpoint, then killed",
            run(command(stage), until=first.is_dir),
        )
        yield f"{stage}, resumed: step 2 and checkpoint", run(command(stage))


def main(argv: Sequence[str] | None = None) -> None:
    """Run all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder for all files")
    parser.add_argument("--config", type=config_path, default="paper")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--subjects", type=int, default=12)
    parser.add_argument("--solver-steps", type=int, default=2)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ["LESIONCAST_ROOT"] = str(args.out.absolute())
    keys = overrides(2, subjects=args.subjects, solver_steps=args.solver_steps) + args.overrides
    try:
        config = load_config(args.config, keys)
    except LesioncastError as error:
        raise SystemExit(str(error)) from error
    if args.part:
        PARTS[args.part](config)
        return
    if config.paths.root.exists():
        raise SystemExit(f"--out: expected a new folder, got {args.out} with files; name another")
    flags = [f"--set={key}" for key in keys]

    def command(job: str) -> list[str]:
        script = ROOT / "jobs" / f"{job}.py"
        return [sys.executable, str(script), f"--config={args.config}", *flags]

    print(HEAD, flush=True)
    this = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)]
    show(f"store of {args.subjects} simulated subjects", run([*this, "--part=store"]))
    for part, usage in stages(config, command):
        show(part, usage)
    show("bundle loaded, one arm, two samples", run([*this, "--part=sample"]))
    print(f"\n{parameters(config.paths.bundle) / 1e6:.0f} M weights, slab {config.store.slab}")


def show(part: str, usage: Usage) -> None:
    """Print a row of the table."""
    end = "killed" if usage.killed else "ended"
    cells = f"{usage.wall:.0f} s | {usage.processor:.0f} s | {usage.memory:.1f} GiB | {end}"
    print(f"| {part} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
