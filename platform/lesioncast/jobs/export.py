"""Give back what a store or a forecast holds, on the patients' own grids: NIfTI and DICOM SEG.

    python jobs/export.py --config jobs/configs/demo.yaml --subjects sub-0001 --channels w096/net2
    python jobs/export.py --config jobs/configs/demo.yaml --subjects sub-0001 --dicom SERIES
    python jobs/export.py --config jobs/configs/demo.yaml --forecasts FOLDER --dicom FOLDER

From a store: a BIDS derivative of all that the subjects have, or of the --channels alone. --dicom
adds their masks as DICOM SEG on the series of their w048 FLAIR: the series' folder for one subject,
or a folder with one of that name for each. From --forecasts, whose maps are NIfTI already: the maps
as DICOM SEG, probabilities or, with --threshold, masks. DICOM needs the extra `dicom`.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lesioncast.cluster.connection import configure_logging, job_parser
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError, LesioncastError
from lesioncast.forecasting.output.bids import forecast_subjects, read_maps
from storage import StorageError, open_store
from storage.export.export import CHANNEL_NAMES, export_case, write_export_root

if TYPE_CHECKING:
    from storage.export.dicom_seg import Segmentation

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("--store", type=Path, help="the Zarr store (default: <root>/store.zarr)")
    parser.add_argument("--forecasts", type=Path, help="export these instead of the store")
    parser.add_argument("--subjects", default="", help="such as sub-0001,sub-0002 (default: all)")
    parser.add_argument("--channels", default="", help="such as w096/net2,w048/parcellation")
    parser.add_argument("--dicom", type=Path, help="the series of the w048 FLAIR")
    parser.add_argument("--threshold", type=float, help="masks of forecasts at this probability")
    parser.add_argument("--out", type=Path, help="where files go (default: <root>/export)")
    args = parser.parse_args(argv)
    configure_logging()
    if args.forecasts and not args.dicom:
        parser.error(
            "--forecasts: the maps are NIfTI already; name a --dicom series to lay them on"
        )
    try:
        config = load_config(args.config, args.overrides)
        export = export_forecasts if args.forecasts else export_store
        export(config, args, (args.out or config.paths.root / "export").absolute())
    except ConfigError as error:
        parser.error(str(error))
    except (StorageError, LesioncastError) as error:
        logger.error("%s", error)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ("highdicom", "pydicom"):
            raise
        logger.error("DICOM needs the extra dicom: pip install 'lesioncast[dicom]'")
        return 1
    return 0


def export_store(config: Config, args: argparse.Namespace, out: Path) -> None:
    """What subjects of a store have, as NIfTI and, beside a series, their masks as DICOM SEG."""
    store = open_store((args.store or config.paths.store).absolute())
    names = [name for name in args.channels.split(",") if name] or CHANNEL_NAMES
    wanted = [name for name in args.subjects.split(",") if name]
    cases = [store.case(name) for name in wanted] or list(store.cases)
    write_export_root(out, source=store.table.bids)
    for case in cases:
        paths = export_case(store, case, names, out, settings=config.store)
        logger.info("%s: %d images in %s", case.subject, len(paths), out / case.subject)
        if args.dicom:
            from storage.export.dicom_seg import case_segmentation

            segmentation = case_segmentation(store, case, names)
            write_dicom(segmentation, args.dicom, case.subject, out=out, alone=len(cases) == 1)


def export_forecasts(_: Config, args: argparse.Namespace, out: Path) -> None:
    """The maps of a forecast as DICOM SEG."""
    from lesioncast.forecasting.output.dicom_seg import forecast_segmentation

    wanted = [name for name in args.subjects.split(",") if name]
    subjects = wanted or forecast_subjects(args.forecasts)
    for subject in subjects:
        maps = read_maps(args.forecasts, subject)
        segmentation = forecast_segmentation(maps, threshold=args.threshold)
        write_dicom(segmentation, args.dicom, subject, out=out, alone=len(subjects) == 1)


def write_dicom(
    segmentation: "Segmentation", dicom: Path, subject: str, *, out: Path, alone: bool
) -> None:
    """Lay one subject's segments on its series and write them below `out`/dicom."""
    from storage.export.dicom_seg import write_segmentation
    from storage.export.dicom_series import DicomError, read_series

    own = dicom / subject
    if not own.is_dir() and not alone:
        raise DicomError(f"{dicom}: expected a folder {subject} with its series, got none.")
    if not segmentation.segments:
        logger.warning("%s: no masks among the channels, so no DICOM SEG", subject)
        return
    path = out / "dicom" / f"{subject}_seg.dcm"
    write_segmentation(segmentation, read_series(own if own.is_dir() else dicom), path)
    logger.info("%s: %d segments in %s", subject, len(segmentation.segments), path)
