"""Peak and current memory of the Ray workers below this process."""

import os
from pathlib import Path


def peaks_of_workers() -> list[float]:
    """Return each worker's peak resident set in MiB, including shared pages."""
    fields = {int(path.parent.name): _status(path) for path in Path("/proc").glob("[0-9]*/status")}
    return [
        int(status["VmHWM"].split()[0]) / 1024
        for pid, status in fields.items()
        if status.get("Name", "").startswith("ray::") and "VmHWM" in status and _ours(pid, fields)
    ]


def _ours(pid: int, fields: dict[int, dict[str, str]]) -> bool:
    while pid in fields:
        pid = int(fields[pid].get("PPid", "0"))
        if pid == os.getpid():
            return True
    return False


def _status(path: Path) -> dict[str, str]:
    return {
        name: value.strip() for name, _, value in (line.partition(":") for line in _lines(path))
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # it has ended
        return []


def memory_now() -> float:
    """Return the MiB of this process and all below it, counting each shared page once."""
    ids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    fields = {pid: _status(Path(f"/proc/{pid}/status")) for pid in ids}
    return sum(_shares(pid) for pid in ids if pid == os.getpid() or _ours(pid, fields))


def _shares(pid: int) -> float:
    for line in _lines(Path(f"/proc/{pid}/smaps_rollup")):
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
