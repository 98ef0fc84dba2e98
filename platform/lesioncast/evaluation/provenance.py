"""Provenance of an evaluation: code, libraries, command, seed, and digests of its inputs."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.version import installed_version

LIBRARIES = ("ray", "torch", "zarr", "numpy", "scikit-learn", "scipy")


@dataclass(frozen=True)
class EvaluationSources:
    """The inputs of an evaluation: digests of bundle and store, and the configuration's name.

    `trained_on` is the bundle's sentence on its training data.
    """

    bundle: str
    trained_on: str
    store: str
    configuration: str
    seed: int


@dataclass(frozen=True)
class Provenance:
    """When, with which command, from which inputs and by which code an evaluation was produced."""

    date: str
    command: str
    configuration: str
    seed: int
    bundle: str
    trained_on: str
    store: str
    code: str
    libraries: Mapping[str, str]


def provenance(command: Sequence[str], sources: EvaluationSources) -> Provenance:
    """Return the provenance of an evaluation that is made now by `command`."""
    return Provenance(
        date=datetime.now(UTC).date().isoformat(),
        command=shlex.join(command),
        configuration=sources.configuration,
        seed=sources.seed,
        bundle=sources.bundle,
        trained_on=sources.trained_on,
        store=sources.store,
        code=code_version(),
        libraries={
            "python": platform.python_version(),
            **{name: installed_version(name) for name in LIBRARIES},
        },
    )


def current_command() -> tuple[str, ...]:
    """Return the command line of this process, without the folder of the console script."""
    if Path(sys.argv[0]).name == "lesioncast":
        return ("lesioncast", *sys.argv[1:])
    return ("python", *sys.argv)


def code_version() -> str:
    """Return the package's version and, where it runs from a git tree, the commit."""
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder, check=True, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # git or its folder is absent in an image
        return f"lesioncast {installed_version()}"
    return f"lesioncast {installed_version()}, commit {described.stdout.strip()}"
