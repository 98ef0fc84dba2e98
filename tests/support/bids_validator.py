"""Run the official BIDS validator."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def validator_reports(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the errors of a data set ("own") and of each derivative in it.

    Skips the test if no validator is installed.
    """
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    validator = shutil.which("bids-validator-deno", path=beside_python)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed: BIDS validity was NOT checked")
    command = [validator, "--recursive", "--format", "json", str(root)]
    output = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    reports = {"own": output} | output.get("derivativesSummary", {})
    return {
        name: [issue for issue in report["issues"]["issues"] if issue["severity"] == "error"]
        for name, report in reports.items()
    }
