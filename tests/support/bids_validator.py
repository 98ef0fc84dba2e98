"""Check a BIDS derivative: the official validator, and the files that its BIDS URIs name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

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


def bids_uris(derivative: Path) -> set[str]:
    """Return every BIDS URI in the sidecars of a derivative."""
    records = [json.loads(path.read_text()) for path in derivative.rglob("*.json")]
    return {uri for record in records for uri in _uris(record)}


def dead_links(derivative: Path) -> set[str]:
    """Return the BIDS URIs of a derivative that name no file of its source data set."""
    links = json.loads((derivative / "dataset_description.json").read_text())["DatasetLinks"]
    raw = derivative / unquote(urlparse(links["raw"]).path)
    return {
        uri
        for uri in bids_uris(derivative)
        if not (raw / unquote(re.sub("^bids:raw:", "", uri))).is_file()
    }


def _uris(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        values = value.values() if isinstance(value, dict) else value
        return [uri for item in values for uri in _uris(item)]
    return [value] if isinstance(value, str) and value.startswith("bids:") else []
