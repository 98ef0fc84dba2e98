"""A full-size simulated trial that converts, is killed at random, goes on and is verified.

    PYTHONPATH=.:platform python tests/benchmarks/kills.py --folder /tmp/kills [--subjects 300]

Simulates the trial, converts it once undisturbed, then again under SIGKILLs of the driver and of
workers in turn, each after a random number of new files; then to the end. Prints how long each run
took, what it had finished when it died, whether the two stores are the same to the last byte, what
`--verify` says and how long a conversion takes that has nothing to do. Exit code 1 if one of these
is not as it should be.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

JOBS = Path(__file__).resolve().parent.parent.parent / "jobs"
POLL = 0.01  # seconds


def job(name: str, *flags: str) -> list[str]:
    """The command of a job."""
    return [sys.executable, str(JOBS / name), *flags]


def timed(command: Sequence[str]) -> tuple[int, float]:
    """The exit code of a command, and its seconds."""
    started = time.monotonic()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        print(done.stderr[-2000:])
    return done.returncode, time.monotonic() - started


def count(store: Path, pattern: str) -> int:
    """Files of a store."""
    return sum(1 for _ in store.glob(pattern))


def workers_of(driver: int) -> list[int]:
    """Processes that build a shard below a driver: its raylet starts them."""
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


def killed_run(command: Sequence[str], store: Path, *, new: int, worker: bool) -> str:
    """Run until `new` more files are there, kill, and say what became of it."""
    target = count(store, "shards/**/*") + new
    started = time.monotonic()
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while driver.poll() is None and count(store, "shards/**/*") < target:
        time.sleep(POLL)
    victim = "driver"
    if worker:
        while driver.poll() is None and not (found := workers_of(driver.pid)):
            time.sleep(POLL)
        if driver.poll() is None:
            victim = "worker"
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(found[0], signal.SIGKILL)
    else:
        driver.kill()
    code = driver.wait()
    seconds = time.monotonic() - started
    shards = count(store, "shards/*.json")
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    return f"{victim} killed: {how} after {seconds:.0f} s, {shards} shards finished"


def differing(one: Path, other: Path) -> list[str]:
    """Files that are not the same, byte for byte, in two folders."""
    names = {p.relative_to(f) for f in (one, other) for p in f.rglob("*") if p.is_file()}
    return sorted(str(name) for name in names if not _same(one / name, other / name))


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Run all of it; the exit code is in the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", default=str(JOBS / "configs" / "paper.yaml"))
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args(argv)
    flags = ["--config", args.config, "--bids", str(args.folder / "bids")]
    flags += [f"--set={text}" for text in (f"cohort.subjects={args.subjects}", *args.overrides)]
    whole, killed = args.folder / "whole.zarr", args.folder / "killed.zarr"
    commands = {path: job("convert.py", *flags, "--store", str(path)) for path in (whole, killed)}

    code, seconds = timed(job("simulate.py", *flags))
    print(f"simulated {args.subjects} subjects in {seconds:.0f} s")
    ok = code == 0
    code, seconds = timed(commands[whole])
    print(f"converted them undisturbed in {seconds:.0f} s, {args.subjects / seconds:.2f}/s")
    ok &= code == 0

    rng, files = random.Random(args.seed), count(whole, "shards/**/*")
    for number in range(args.kills):
        new = rng.randint(1, max(1, files // args.kills))
        print(killed_run(commands[killed], killed, new=new, worker=number % 3 == 2), flush=True)
    code, seconds = timed(commands[killed])
    print(f"went on to the end in {seconds:.0f} s")
    apart = differing(whole, killed)
    print(f"{len(apart)} files differ from the undisturbed store {apart[:3]}")
    ok &= code == 0 and not apart
    code, seconds = timed([*commands[killed], "--verify"])
    print(f"verified in {seconds:.0f} s: exit code {code}")
    ok &= code == 0
    code, seconds = timed(commands[killed])
    print(f"a conversion with nothing to do: {seconds:.1f} s, exit code {code}")
    return 0 if ok and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
