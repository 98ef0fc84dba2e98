"""Files of forecasts, by the id that the service gave each forecast.

<id>/            the result, a BIDS derivative of its own
samples/<id>.npz some samples of a finished forecast, which viewers show one by one
uploads/<id>/    the images that the client uploaded, and the store made from them
"""

import shutil
import time
from pathlib import Path

ORPHAN_AGE_SECONDS = 3600.0


def result_dir(artifacts: Path, job_id: str) -> Path:
    """Return the folder of a forecast's result."""
    return artifacts / job_id


def upload_dir(artifacts: Path, job_id: str) -> Path:
    """Return the folder of the images that were uploaded for a forecast."""
    return artifacts / "uploads" / job_id


def kept_samples_path(artifacts: Path, job_id: str) -> Path:
    """Return the file of the samples that are kept of a finished forecast."""
    return artifacts / "samples" / f"{job_id}.npz"


def remove_upload(artifacts: Path, job_id: str) -> None:
    """Delete a forecast's uploaded files."""
    shutil.rmtree(upload_dir(artifacts, job_id), ignore_errors=True)


def remove_artifacts(artifacts: Path, job_id: str) -> None:
    """Delete a forecast's uploaded files, its samples and its result."""
    remove_upload(artifacts, job_id)
    kept_samples_path(artifacts, job_id).unlink(missing_ok=True)
    shutil.rmtree(result_dir(artifacts, job_id), ignore_errors=True)


def jobs_with_artifacts(artifacts: Path) -> set[str]:
    """Return the ids of the forecasts that have any file."""
    folders = ("*", "uploads/*", "samples/*.npz")
    return {path.stem for pattern in folders for path in artifacts.glob(pattern)}


def stale_uploads(artifacts: Path) -> list[str]:
    """Return the ids of uploads that are older than `ORPHAN_AGE_SECONDS`.

    A process can die after it has received an upload and before it has committed the forecast. No
    forecast of that id ever appears then, and its files have to be found by their age.
    """
    uploads = (artifacts / "uploads").glob("*")
    return [folder.name for folder in uploads if _age_seconds(folder) > ORPHAN_AGE_SECONDS]


def _age_seconds(folder: Path) -> float:
    """Return the seconds since a folder was modified, 0 if another process has just removed it."""
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
