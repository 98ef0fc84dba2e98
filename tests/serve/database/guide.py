"""Run the commands of the operator's guide as an operator would."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[3] / "serve" / "OPERATIONS.md"


def guide_commands(section: str, *, without: str) -> str:
    """Return the commands of a section of serve/OPERATIONS.md, in order.

    Blocks that contain the word `without` are left out: those of the other kind of database.
    """
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.M | re.S)
    blocks = re.findall(r"(?:^ {4}\S.*\n(?: {4}.*\n)*)", text, re.M)
    chosen = [block for block in blocks if without not in block]
    assert 0 < len(chosen) < len(blocks), f"expected blocks with and without {without}"
    return "".join(chosen)


def run_commands(
    commands: str, places: Mapping[str, str | Path], *, path: Path | None = None
) -> None:
    """Run commands in a shell that stops at the first error; `path` is searched for programs."""
    first = [str(folder) for folder in (path, Path(sys.executable).parent) if folder]
    search = os.pathsep.join([*first, os.environ["PATH"]])
    environment = os.environ | {"PATH": search} | {k: str(v) for k, v in places.items()}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
