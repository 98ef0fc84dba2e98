"""Convert the images of one patient, without a cluster, into a store of one case.

The patient's files are laid out as a BIDS dataset and pass through the conversion of trials. A
patient therefore gets the same case, and the same forecast, as a subject of a trial would.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from storage.backends.open import open_backend
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.errors import CaseError, Exclusion
from storage.layout import BASELINE, CHANNELS, CURRENT, CovariateValue, shard_record_path
from storage.preprocess.visits import INTERVALS
from storage.settings import StoreSettings, TrialLayout
from storage.store.shards import decode_record
from storage.store.store import Store
from storage.trial.dataset import SUBJECT_LEVEL_CHANNELS

PATIENT_IMAGES = (
    *(f"{BASELINE}/{channel}" for channel in ("flair", "t2", "gad")),
    *(f"{CURRENT}/{channel}" for channel in (*CHANNELS, *SUBJECT_LEVEL_CHANNELS)),
)
"""Names of the images that a patient may have; the two FLAIR images are required."""


def patient_image_path(name: str, subject: str, layout: TrialLayout) -> str:
    """Return the path of an image such as w000/flair below the BIDS folder.

    `layout` is that of `StoreSettings.for_patient`. An example is sub-1/ses-w000/anat/
    sub-1_ses-w000_FLAIR.nii.gz. The name ends in .nii.gz also for files that are not compressed,
    because they are read by their content.
    """
    session, channel = name.split("/")
    label = layout.visits.label(session)
    pattern: str = getattr(layout, channel)
    path = pattern.format(subject=subject.removeprefix("sub-"), session=label)
    space = "" if channel == "flair" else "_space-orig"
    return path.replace(".nii*", ".nii.gz").replace("*", space)


def write_patient_table(
    bids: Path, subject: str, covariates: Mapping[str, CovariateValue], *, layout: TrialLayout
) -> None:
    """Write a participants table of one subject, whose arm is not known.

    `covariates` may hold the days between sessions, by the names in `INTERVALS`.
    """
    row: dict[str, CovariateValue] = {layout.subject_column: subject, layout.arm_column: None}
    columns = dict(zip(INTERVALS, layout.interval_columns, strict=True))
    row.update({columns.get(name, name): value for name, value in covariates.items()})
    cells = ("n/a" if value is None else str(value) for value in row.values())
    lines = ("\t".join(row), "\t".join(cells))
    bids.mkdir(parents=True)
    (bids / str(layout.participants)).write_text("\n".join(lines) + "\n", encoding="utf-8")


def convert_patient(
    bids: Path, store: Path, *, settings: StoreSettings, arms: Sequence[str]
) -> Store:
    """Convert a BIDS dataset of one subject in this process and return its store.

    Raise CaseError with the reason if the subject cannot become a case.
    """
    conversion = plan_conversion(bids, store, settings=settings, arms=tuple(arms), seed=0)
    return convert(conversion, build=_build_in_process)


def _build_in_process(tasks: Sequence[ShardTask]) -> Iterator[int]:
    """Build shards one after the other; raise CaseError for the first subject that is excluded."""
    for task in tasks:
        subjects = build_shard(task)
        record = decode_record(open_backend(task.path).read(shard_record_path(task.shard.name)))
        for outcome in record.outcomes:
            if isinstance(outcome.result, Exclusion):
                raise CaseError(outcome.result)
        yield subjects
