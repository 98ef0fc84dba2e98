"""What the official BIDS validator says of a data set."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def validator_reports(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The errors of a data set ("own") and of every derivative in it; skips without a validator."""
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    validator = shutil.which("bids-validator-deno", path=beside_python)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed: BIDS validity was NOT checked")
    command = [validator, "--recursive", "--format", "json", str(root)]
    found = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    reports = {"own": found} | found.get("derivativesSummary", {})
    return {
        name: [each for each in report["issues"]["issues"] if each["severity"] == "error"]
        for name, report in reports.items()
    }
