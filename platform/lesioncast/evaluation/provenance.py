"""What an evaluation was made with: code, libraries, command, seed, and digests of its inputs."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("ray", "torch", "zarr", "numpy", "scikit-learn", "scipy")


def provenance(
    command: Sequence[str], *, bundle: str, trained_on: str, store: str, config: str, seed: int
) -> dict[str, Any]:
    """As JSON. `bundle` and `store` are digests; the command names no folder but those given."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(command),
        "configuration": config,
        "seed": seed,
        "bundle": bundle,
        "trained_on": trained_on,
        "store": store,
        "code": code_version(),
        "libraries": {
            "python": platform.python_version(),
            **{name: _installed(name) for name in LIBRARIES},
        },
    }


def this_command() -> tuple[str, ...]:
    """The command line that runs now."""
    return ("python", *sys.argv)


def code_version() -> str:
    """The git commit of the tree that this was imported from, or the package's version."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder, check=True, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"lesioncast {_installed('lesioncast')}"
    return f"lesioncast {_installed('lesioncast')}, commit {found.stdout.strip()}"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from the source tree
        return "unreleased"
