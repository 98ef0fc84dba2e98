"""Choose where a node caches the cases of a run: in memory, on disk, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108
# Shares of the free bytes that cases may take. Workers and Ray's objects need the rest of memory.
MEMORY_SHARE = 0.5
DISK_SHARE = 0.9
GIB = 2**30


def cache_roots() -> tuple[Path, ...]:
    """Return the folders that may hold a node's cache, best first.

    That is a folder in $LESIONCAST_CACHE if set, or else one in shared memory, if the system has
    it, and one in the temporary directory. Other users may write to all of these places. So each
    user has a folder of its own in them, which `node_cache` creates and checks.
    """
    name = f"lesioncast-{os.geteuid()}"
    if folder := os.environ.get("LESIONCAST_CACHE"):
        return (Path(folder).absolute() / name,)
    memory = (MEMORY / name,) if MEMORY.is_dir() else ()
    return (*memory, Path(tempfile.gettempdir()).absolute() / name)


def first_that_fits(roots: Sequence[Path], size: int) -> Path | None:
    """Return the first folder with room for `size` bytes, or None."""
    return next((root for root in roots if available_bytes(root) >= size), None)


def available_bytes(root: Path) -> int:
    """Return the bytes that cases may take below `root`, which need not exist yet."""
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if in_memory(root):
        return int(MEMORY_SHARE * min(free, memory_available()))
    return int(DISK_SHARE * free)


def in_memory(root: Path) -> bool:
    """Return True if files below `root` take memory."""
    return root.is_relative_to(MEMORY)


def memory_available(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return the free bytes of memory on the node, within this container's limit (cgroup v2)."""
    node = 1024 * _fields(meminfo)["MemAvailable:"]
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return node
    used = _fields(group / "memory.stat")
    return min(node, int(limit.read_text()) - used["anon"] - used["shmem"])


def _fields(path: Path) -> dict[str, int]:
    """Read a kernel file with one name and one number per line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines}


def describe_choice(size: int, chosen: Path | None, roots: Sequence[Path]) -> str:
    """Describe the chosen folder, with the sizes that decided."""
    available = ", ".join(f"{available_bytes(root) / GIB:.2f} GiB in {root}" for root in roots)
    where = f"cached in {chosen}" if chosen else "streamed from the store at every step"
    return f"{size / GIB:.2f} GiB of cases {where}; available: {available}"
