"""Job `export`: images of a store or maps of forecasts as NIfTI and DICOM SEG."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lesioncast.config import Config
from lesioncast.errors import ConfigError, LesioncastError
from lesioncast.forecasting.output.bids import forecast_subjects, read_maps
from storage import open_store
from storage.export.export import CHANNEL_NAMES, export_case, write_export_root

if TYPE_CHECKING:
    from storage.export.dicom_seg import Segmentation

from lesioncast.jobs.command.arguments import EXPORT
from lesioncast.jobs.command.runner import run_job
from storage.store.trial_folder import trial_folder

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(EXPORT, export, argv)


def export(config: Config, args: argparse.Namespace) -> None:
    """Export the forecasts that --forecasts names, or else the store."""
    out = (args.out or config.paths.root / "export").absolute()
    if args.forecasts and not args.dicom:
        raise ConfigError(
            "--forecasts: expected a --dicom series to put the maps on, got none; "
            "without DICOM there is nothing to do, for the maps are NIfTI files already"
        )
    try:
        (export_forecasts if args.forecasts else export_store)(config, args, out)
    except ModuleNotFoundError as error:
        if error.name not in ("highdicom", "pydicom"):
            raise
        raise LesioncastError(
            "DICOM needs the extra dicom: pip install 'lesioncast[dicom]'"
        ) from error


def export_store(config: Config, args: argparse.Namespace, out: Path) -> None:
    """Write the images of a store's subjects as NIfTI and, with a series, masks as DICOM SEG."""
    store = open_store(args.store or config.paths.store)
    names = [name for name in args.channels.split(",") if name] or CHANNEL_NAMES
    subjects = [name for name in args.subjects.split(",") if name]
    cases = [store.case(name) for name in subjects] or list(store.cases)
    write_export_root(out, source=trial_folder(store, args.bids))
    for case in cases:
        paths = export_case(store, case, names, out)
        logger.info("%s: %d images in %s", case.subject, len(paths), out / case.subject)
        if args.dicom:
            from storage.export.dicom_seg import case_segmentation

            segmentation = case_segmentation(store, case, names)
            write_dicom(segmentation, args.dicom, case.subject, out=out, alone=len(cases) == 1)


def export_forecasts(_: Config, args: argparse.Namespace, out: Path) -> None:
    """Write the probability maps of forecasts as DICOM SEG."""
    from lesioncast.forecasting.output.dicom_seg import forecast_segmentation

    requested = [name for name in args.subjects.split(",") if name]
    subjects = requested or forecast_subjects(args.forecasts)
    for subject in subjects:
        maps = read_maps(args.forecasts, subject)
        segmentation = forecast_segmentation(maps, threshold=args.threshold)
        write_dicom(segmentation, args.dicom, subject, out=out, alone=len(subjects) == 1)


def write_dicom(
    segmentation: "Segmentation", dicom: Path, subject: str, *, out: Path, alone: bool
) -> None:
    """Write one subject's segments on the grid of its series, below `out`/dicom.

    `dicom` holds a folder of series for each subject; with a single subject (`alone`) it may be the
    series itself. Raise DicomError if the subject has no series there.
    """
    from storage.export.dicom_seg import write_segmentation
    from storage.export.dicom_series import DicomError, read_series

    subject_series = dicom / subject
    if not subject_series.is_dir() and not alone:
        raise DicomError(f"{dicom}: expected a folder {subject} with its series, got none.")
    if not segmentation.segments:
        logger.warning("%s: no masks among the channels, so no DICOM SEG", subject)
        return
    path = out / "dicom" / f"{subject}_seg.dcm"
    series = read_series(subject_series if subject_series.is_dir() else dicom)
    write_segmentation(segmentation, series, path)
    logger.info("%s: %d segments in %s", subject, len(segmentation.segments), path)
