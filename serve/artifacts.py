"""Where the files of a forecast lie, by the id that the service gave it, and their end.

<id>/            what came of it, a BIDS derivative of its own
uploads/<id>/    what was uploaded for it
"""

import shutil
import time
from pathlib import Path

ORPHAN_AGE_SECONDS = 3600.0


def result_dir(artifacts: Path, job: str) -> Path:
    """Where the result of a forecast lies."""
    return artifacts / job


def upload_dir(artifacts: Path, job: str) -> Path:
    """Where what was uploaded for a forecast lies."""
    return artifacts / "uploads" / job


def remove_upload(artifacts: Path, job: str) -> None:
    """Of what was uploaded nothing stays."""
    shutil.rmtree(upload_dir(artifacts, job), ignore_errors=True)


def remove_artifacts(artifacts: Path, job: str) -> None:
    """Nor does what came of it, if anything did."""
    remove_upload(artifacts, job)
    shutil.rmtree(result_dir(artifacts, job), ignore_errors=True)


def jobs_with_artifacts(artifacts: Path) -> set[str]:
    """The ids of forecasts of which something lies there."""
    return {folder.name for place in ("*", "uploads/*") for folder in artifacts.glob(place)}


def stale_uploads(artifacts: Path) -> list[str]:
    """The ids of uploads that have lain there for an hour. A process can die between an upload and
    the acceptance of its forecast, which then never comes."""
    uploads = (artifacts / "uploads").glob("*")
    return [folder.name for folder in uploads if _age(folder) > ORPHAN_AGE_SECONDS]


def _age(folder: Path) -> float:
    """In seconds; 0 of one that was removed meanwhile."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
