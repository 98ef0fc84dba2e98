"""Which patient a forecast is about, and the store that holds the images."""

from pathlib import Path
from typing import NamedTuple

from lesioncast.imaging.channels import Sessions
from serve.artifacts import upload_dir
from serve.db.models import ForecastJob
from storage import Store, open_store


class PatientRef(NamedTuple):
    """A reference to a patient's images.

    `upload` is the id of the forecast that the images were uploaded for; None means that `subject`
    is a subject of the mounted store. Only images of `sessions` are shown to the model; None means
    all of them.
    """

    subject: str
    upload: str | None
    sessions: Sessions | None = None


def store_for_patient(patient: PatientRef, mounted: Store, artifacts: Path) -> Store:
    """Return the mounted store, or open the store that was made from the patient's upload."""
    if patient.upload is None:
        return mounted
    return open_store(upload_dir(artifacts, patient.upload) / "store.zarr")


def patient_for_job(job: ForecastJob) -> PatientRef:
    """Return the patient of a job, and the sessions whose images the model sees."""
    request = job.request
    upload = None if request.upload is None else job.id
    return PatientRef(request.subject, upload, request.sessions)
