"""Convert a full-size simulated trial under random SIGKILLs and verify the resulting store.

    PYTHONPATH=.:platform python tests/benchmarks/data/conversion_kills.py --folder /tmp/kills \
        --set 'simulation.shape=[21, 256, 256]' [--subjects 300]

Simulate the trial and convert it once undisturbed. Convert it again in several runs: each loses a
worker and then its driver to SIGKILL at random moments, every second time while a shard's files
are being written. A last run completes the store. Print how far each run got, whether both stores
are equal byte for byte, what `--verify` reports, and how long a conversion with nothing to do
takes. The exit code is 1 if any check fails.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

JOBS = Path(__file__).resolve().parents[3] / "jobs"
POLL = 0.05  # seconds

Command = list[str]


def job_command(name: str, *flags: str) -> Command:
    """Return the command line of a job."""
    return [sys.executable, str(JOBS / name), *flags]


def run_timed(command: Command) -> tuple[bool, float]:
    """Run a command; return whether it succeeded and its seconds. Print its output if it failed."""
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(f"exit code {done.returncode}: {done.stdout[-2000:]}")
    return not done.returncode, time.monotonic() - started


def count(store: Path, pattern: str) -> int:
    """Count the files of a store that match the pattern."""
    return sum(1 for _ in store.glob(pattern))


def workers_of(driver: int) -> list[int]:
    """Return the processes below a driver that build a shard. The raylet starts them."""
    parents: dict[int, int] = {}
    builders: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        parents[int(folder.name)] = parent
        if title.startswith(b"ray::build_shard"):
            builders.append(int(folder.name))
    return [pid for pid in builders if driver in _line(pid, parents)]


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


@dataclass(frozen=True)
class Strike:
    """One SIGKILL: its victim, its delay, and whether it waits for files to be written."""

    victim: str
    seconds: float
    writing: bool


def strikes(rng: random.Random, runs: int, *, within: float) -> list[tuple[Strike, Strike]]:
    """Plan two strikes per run: a worker, then the driver. Every second one hits during writing."""
    return [
        (
            Strike("worker", rng.uniform(0, within), number % 2 == 0),
            Strike("driver", rng.uniform(0, within), number % 2 == 1),
        )
        for number in range(runs)
    ]


def killed_run(command: Command, store: Path, planned: Sequence[Strike]) -> bool:
    """Run a conversion with these strikes; return False if one found no victim."""
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    struck = [strike(driver, store, each) for each in planned]
    code = driver.wait()
    print(
        f"run ended with code {code}, {count(store, 'shards/*.json')} shards finished", flush=True
    )
    return all(struck) and code == -signal.SIGKILL


def strike(driver: "subprocess.Popen[bytes]", store: Path, planned: Strike) -> bool:
    """Wait for the moment, kill, and print the progress; return False if the run had ended."""
    wait_until(lambda: bool(workers_of(driver.pid)), driver)
    until_time = time.monotonic() + planned.seconds
    wait_until(lambda: time.monotonic() >= until_time, driver)
    if planned.writing:
        files = count(store, "shards/*/**/*")
        wait_until(lambda: count(store, "shards/*/**/*") > files, driver)
    victims = workers_of(driver.pid) if planned.victim == "worker" else [driver.pid]
    if driver.poll() is not None or not victims:
        print(f"expected a {planned.victim} to kill, got none: the run had ended")
        return False
    os.kill(victims[0], signal.SIGKILL)
    whole, begun = count(store, "shards/*.json"), count(store, "shards/*/")
    print(f"{planned.victim} killed, {whole} shards finished, {begun - whole} torn", flush=True)
    return True


def wait_until(reached: Callable[[], bool], driver: "subprocess.Popen[bytes]") -> None:
    """Wait until the condition holds or the driver has ended."""
    while driver.poll() is None and not reached():
        time.sleep(POLL)


def differing_files(one: Path, other: Path) -> list[str]:
    """Return the files that differ between two folders, byte for byte."""
    names = {p.relative_to(f) for f in (one, other) for p in f.rglob("*") if p.is_file()}
    return sorted(str(name) for name in names if not _same(one / name, other / name))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step; return the exit code described in the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", default=str(JOBS / "configs" / "paper.yaml"))
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3, help="that are killed, two SIGKILLs each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args(argv)
    flags = ["--config", args.config, "--bids", str(args.folder / "bids")]
    flags += [f"--set={text}" for text in (f"simulation.subjects={args.subjects}", *args.overrides)]
    whole, killed = args.folder / "whole.zarr", args.folder / "killed.zarr"
    commands = {
        path: job_command("convert.py", *flags, "--store", str(path)) for path in (whole, killed)
    }

    ok = run_step(f"simulated {args.subjects} subjects", job_command("simulate.py", *flags))[0]
    good, seconds = run_step("converted them undisturbed", commands[whole])
    ok &= good
    planned = strikes(random.Random(args.seed), args.runs, within=seconds / (2 * args.runs))
    for pair in planned:
        ok &= killed_run(commands[killed], killed, pair)
    ok &= run_step("went on to the end", commands[killed])[0]
    apart = differing_files(whole, killed)
    files = [path for path in killed.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{len(apart)} of {len(files)} files, {size:.0f} MiB, differ from the undisturbed store")
    print("\n".join(apart[:5]), end="")
    ok &= not apart
    ok &= run_step("verified", [*commands[killed], "--verify"])[0]
    ok &= run_step("a conversion with nothing to do", commands[killed])[0]
    return 0 if ok else 1


def run_step(what: str, command: Command) -> tuple[bool, float]:
    """Run a command and print how long it took."""
    good, seconds = run_timed(command)
    print(f"{what}: {seconds:.1f} s", flush=True)
    return good, seconds


if __name__ == "__main__":
    sys.exit(main())
