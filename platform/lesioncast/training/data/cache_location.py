"""Where a node keeps the cases of a run: in memory, on disk, or in the store alone."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108
# What cases may take of what is free; the rest of memory is for the workers and Ray's own objects.
MEMORY_SHARE = 0.5
DISK_SHARE = 0.9
GIB = 2**30


def cache_roots() -> tuple[Path, ...]:
    """The folders for cases on every node, best first: $LESIONCAST_CACHE alone, or else one in
    shared memory, where the system has it, and one in the temporary folder."""
    if own := os.environ.get("LESIONCAST_CACHE"):
        return (Path(own).absolute(),)
    name = f"lesioncast-{os.getuid()}"
    memory = (MEMORY / name,) if MEMORY.is_dir() else ()
    return (*memory, Path(tempfile.gettempdir()).absolute() / name)


def first_that_fits(roots: Sequence[Path], size: int) -> Path | None:
    """The first folder where `size` bytes fit with a margin, None where no one has the room."""
    return next((root for root in roots if available_bytes(root) >= size), None)


def available_bytes(root: Path) -> int:
    """Bytes that cases may take below `root`, which need not exist yet."""
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if in_memory(root):
        return int(MEMORY_SHARE * min(free, memory_available()))
    return int(DISK_SHARE * free)


def in_memory(root: Path) -> bool:
    """Whether files below `root` take memory."""
    return root.is_relative_to(MEMORY)


def memory_available(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int:
    """Bytes of memory that can still be had, on the node and within this container's limit."""
    node = 1024 * _fields(meminfo)["MemAvailable:"]
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return node
    used = _fields(group / "memory.stat")
    return min(node, int(limit.read_text()) - used["anon"] - used["shmem"])


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}


def describe_choice(size: int, kept: Path | None, roots: Sequence[Path]) -> str:
    """What was chosen, with the sizes that decided."""
    rooms = ", ".join(f"{available_bytes(root) / GIB:.2f} GiB in {root}" for root in roots)
    where = f"kept in {kept}" if kept else "streamed from the store at every step"
    return f"{size / GIB:.2f} GiB of cases {where}; room for {rooms}"
