"""Command lines of the jobs, built without their heavy imports so that `--help` answers at once."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lesioncast.bundle.pretrained import PRETRAINED, pretrained_bundle
from lesioncast.errors import BundleError

if TYPE_CHECKING:
    from storage import Location

_PACKAGE = Path(__file__).resolve().parents[2]
# In a wheel the configurations lie in the package; in the source tree they lie beside the jobs.
CONFIG_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parents[1] / "jobs" / "configs")


@dataclass(frozen=True)
class JobCommand:
    """Command line of one job."""

    #: Name of the subcommand and of the module in `lesioncast.jobs`.
    name: str
    #: One line in the list of subcommands.
    summary: str
    #: Text that `--help` prints below the usage.
    description: str
    #: Adds the job's own arguments to a parser.
    add_arguments: Callable[[argparse.ArgumentParser], None]
    #: Whether the job reads a configuration.
    configured: bool = True


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with lesioncast, by name."""
    for folder in CONFIG_FOLDERS:
        if paths := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in paths}
    return {}


def config_path(value: str) -> Path:
    """Return the path of a configuration given as a file or as the name of a shipped one."""
    path = Path(value)
    if path.suffix or path.name != value or path.is_file():
        return path
    configs = shipped_configs()
    if value not in configs:
        raise argparse.ArgumentTypeError(
            f"expected a file or one of {', '.join(configs)}, got {value}"
        )
    return configs[value]


def store_location(value: str) -> "Location":
    """Return the path or URL of a store."""
    # Importing storage takes a second, and only this flag needs it.
    from storage import parse_location

    return parse_location(value)


def local_path(value: str) -> Path:
    """Return the path of a local file or folder; a path made of a URL would name a folder s3:."""
    if "://" in value:
        raise argparse.ArgumentTypeError(
            f"expected a local path, got the URL {value}; mount it, or copy it from or to there"
        )
    return Path(value)


def bundle_path(value: str) -> Path:
    """Return the folder of a bundle to read: a path, or the name of the one that is shipped."""
    try:
        return pretrained_bundle() if value == PRETRAINED else local_path(value)
    except BundleError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def new_bundle_path(value: str) -> Path:
    """Return the folder of a bundle to write, which cannot be the one that is shipped."""
    if value == PRETRAINED:
        raise argparse.ArgumentTypeError(
            f"expected a folder to write to, got {PRETRAINED}, which names the bundle that comes "
            f"with lesioncast; write ./{PRETRAINED} for a folder of that name"
        )
    return local_path(value)


def job_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every job with a configuration takes."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    return parser


def add_job_arguments(parser: argparse.ArgumentParser, command: JobCommand) -> None:
    """Add all arguments of a job."""
    if command.configured:
        add_common_arguments(parser)
    command.add_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every job with a configuration takes."""
    parser.add_argument(
        "--config",
        type=config_path,
        required=True,
        help="a file, or the name of a shipped configuration, such as demo",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, such as --set pretrain.steps=50 (repeatable)",
    )


def _no_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing."""


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bids", type=local_path, help="the trial (default: <root>/bids)")


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bids", type=local_path, help="the trial (default: <root>/bids)")
    _store_argument(parser)
    parser.add_argument("--mapping", type=local_path, help="layout of a trial that is not BIDS")
    parser.add_argument(
        "--verify", action="store_true", help="compare every digest and convert nothing"
    )


def _qc_arguments(parser: argparse.ArgumentParser) -> None:
    _store_argument(parser)
    parser.add_argument("--out", type=local_path, help="where the table goes (default: <root>/qc)")


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    _store_argument(parser)
    parser.add_argument("--out", type=local_path, help="where runs are kept (default: <root>/runs)")
    parser.add_argument("--fresh", action="store_true", help="discard this run and start over")


def _finetune_arguments(parser: argparse.ArgumentParser) -> None:
    _pretrain_arguments(parser)
    parser.add_argument(
        "--bundle", type=new_bundle_path, help="where the bundle goes (default: <root>/bundle)"
    )


def _forecast_arguments(parser: argparse.ArgumentParser) -> None:
    _store_argument(parser)
    _bundle_argument(parser)
    _moved_trial_argument(parser)
    parser.add_argument(
        "--out", type=local_path, help="where forecasts go (default: <root>/forecasts)"
    )
    parser.add_argument("--subjects", default="", help="such as sub-0001,sub-0002")
    parser.add_argument(
        "--local", action="store_true", help="sample in this process, without a Ray cluster"
    )


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _store_argument(parser)
    _bundle_argument(parser)
    _moved_trial_argument(parser)
    parser.add_argument(
        "--out", type=local_path, help="where files go (default: <root>/evaluation)"
    )
    parser.add_argument(
        "--choose-guidance",
        action="store_true",
        help="first choose the guidance on validation cases, and record it in the bundle",
    )


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=bundle_path, help="the bundle, which stays as it is, or pretrained"
    )
    parser.add_argument("store", type=store_location, help="the store of the labelled cases")
    parser.add_argument(
        "--output", type=new_bundle_path, required=True, help="where the new bundle goes"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "all"),
        default="val",
        help="the cases to learn from (default: val)",
    )


def _publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=local_path, help="the bundle, which stays as it is")
    parser.add_argument(
        "--evaluation", type=local_path, required=True, help="its evaluation on another trial"
    )
    parser.add_argument(
        "--log",
        type=local_path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="output of the jobs that made it, in their order",
    )
    parser.add_argument("--release", required=True, help="version of the bundle, such as 1.0.0")
    parser.add_argument("--change", required=True, help="what this version changes, in a sentence")
    parser.add_argument("--output", type=new_bundle_path, required=True, help="where the copy goes")


def _combine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundles", type=local_path, nargs="+", help="the bundles, which stay as they are"
    )
    parser.add_argument(
        "--store", type=store_location, required=True, help="the store that all were trained on"
    )
    parser.add_argument(
        "--output", type=new_bundle_path, required=True, help="where the new bundle goes"
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _store_argument(parser)
    _moved_trial_argument(parser)
    parser.add_argument("--forecasts", type=local_path, help="export these instead of the store")
    parser.add_argument("--subjects", default="", help="such as sub-0001,sub-0002 (default: all)")
    parser.add_argument("--channels", default="", help="such as w096/net2,w048/parcellation")
    parser.add_argument("--dicom", type=local_path, help="the series of the current FLAIR")
    parser.add_argument(
        "--threshold", type=float, help="export masks of forecasts at this probability"
    )
    parser.add_argument("--out", type=local_path, help="where files go (default: <root>/export)")


def _store_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=store_location, help="the Zarr store (default: <root>/store.zarr)"
    )


def _moved_trial_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bids", type=local_path, help="the trial of the store, where its folder has moved"
    )


def _bundle_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        type=bundle_path,
        help="the bundle, or pretrained for the one that comes with lesioncast "
        "(default: <root>/bundle)",
    )


SIMULATE = JobCommand(
    "simulate",
    "simulate a trial with known counterfactuals",
    """Simulate a trial on real anatomy, with known counterfactuals, as a BIDS dataset.

    lesioncast simulate --config demo [--bids FOLDER]

A second run of the same command does nothing. With more subjects (--set simulation.subjects=2131)
only the missing ones are added. With other settings the folder is refused.""",
    _simulate_arguments,
)
CONVERT = JobCommand(
    "convert",
    "convert a BIDS trial to a Zarr store",
    """Convert a BIDS trial to the Zarr store that training and forecasting read.

    lesioncast convert --config demo [--bids FOLDER] [--store FOLDER or URL] [--mapping FILE]

For a trial that is not BIDS, --mapping names a file that describes its layout; see
storage/TRIAL_GUIDE.md.
For a trial of other voxel sizes, add --set store.resample=true.

The same command converts new and changed subjects only, also after it was killed. Exit code 0:
every subject is in the store. 3: some subjects were excluded; the log and excluded.tsv give name
and reason. 1: no store was made. With --verify nothing is converted: every digest of the sources
and of the store is computed again, and files that differ are listed. The exit code is then 1 if
there are any, else 0.""",
    _convert_arguments,
)
QC = JobCommand(
    "qc",
    "write a quality control report of a store",
    """Write a table and a page that show each subject of a store, to look at before training.

    lesioncast qc --config demo [--store FOLDER] [--out FOLDER]

Writes qc.html, qc.tsv and a folder of pictures to <root>/qc, flagged subjects first. The page opens
from disk; move or copy it together with its pictures.""",
    _qc_arguments,
)
PRETRAIN = JobCommand(
    "pretrain",
    "train stage 1, the UNet",
    """Train stage 1, the UNet, on the store's training split: outcome FLAIR and NET2 given the arm.

    lesioncast pretrain --config demo

The same command resumes an interrupted run from its last checkpoint.""",
    _pretrain_arguments,
)
FINETUNE = JobCommand(
    "finetune",
    "train stage 2, the ControlNet, and write the bundle",
    """Train stage 2, the ControlNet on the frozen UNet of stage 1, then write the bundle.

    lesioncast finetune --config demo

The same command resumes an interrupted run from its last checkpoint. For a finished run it writes
the bundle again.""",
    _finetune_arguments,
)
FORECAST = JobCommand(
    "forecast",
    "forecast subjects under every arm",
    """Forecast subjects under every arm: probability maps, a summary and a figure of each subject.

    lesioncast forecast --config demo [--subjects sub-0001,sub-0002] [--local]

--local is faster for a few subjects, because no Ray cluster has to start. It gives the same files.
Without --subjects: the first subjects of the test split, or all of a store without outcomes. To
compare arms as if they were taken from the start, show the model the images from before treatment
alone: --set forecast.sessions=[w000]""",
    _forecast_arguments,
)
EVALUATE = JobCommand(
    "evaluate",
    "evaluate forecasts on the test split",
    """Evaluate forecasts on the test split, beside baselines fitted on the training split.

    lesioncast evaluate --config demo

Writes report.html to read, tables.md, metrics.json, estimates.csv, cases.csv and evaluation.png,
and beside the bundle EVALUATION.md and evaluation.json, whose warnings later forecasts carry. The
bundle that comes with lesioncast (--bundle pretrained) keeps its own.
With --choose-guidance the validation cases are first sampled with the guidance 1, 1.5, 2, 3 and
4.5. The one with the least CRPS of the count, and the table, are recorded in the bundle.""",
    _evaluate_arguments,
)
CALIBRATE = JobCommand(
    "calibrate",
    "calibrate a bundle on a hospital's own labelled cases",
    """Calibrate a bundle on labelled cases of another hospital or trial, without training.

    lesioncast calibrate BUNDLE STORE --output FOLDER [--split val]

Writes a new bundle with the same weights. Its intervals of the number of lesions and its
recalibrated P(active) are learned on the cases of STORE whose arm and new lesions are known, from
all images and from each smaller set of images. From about 134 cases on, they also tell how typical
a patient is. The bundle names the one that it was made from, and the cases. Evaluate and forecast
with it as with any bundle; leave the test split for that. Convert the cases with the configuration
that the bundle was trained with. No GPU and no Ray are needed.""",
    _calibrate_arguments,
    configured=False,
)
PUBLISH = JobCommand(
    "publish",
    "write a bundle with its evaluation and model card, to be shipped",
    """Write a copy of a bundle that can be shipped: checked, evaluated and described.

    lesioncast publish BUNDLE --evaluation FOLDER --log FILE... --release 1.0.0 --change TEXT
        --output FOLDER

Beside the bundle's own files, which keep their digest, the copy holds its EVALUATION.md,
metadata.json (the model card in the form of MONAI's bundles: data, use, figures, versions,
commands) and training.log. The evaluation must be of this very bundle, on a trial that it was
neither trained nor calibrated on. The logs must show the commands of both training stages. The
copy may be 10 MB large. Publishing to platform/lesioncast/pretrained makes it the bundle that comes
with lesioncast.""",
    _publish_arguments,
    configured=False,
)
COMBINE = JobCommand(
    "combine",
    "combine bundles of different training seeds into one",
    """Combine bundles that differ by their training seed into one of several members.

    lesioncast combine BUNDLE BUNDLE ... --store STORE --output FOLDER

The new bundle holds the networks and priors of all. Its forecasts are those of their mixture, and
also tell how far the members differ. Its calibration is learned for the mixture, on the validation
cases of STORE, on whose training cases all bundles must have been trained. Evaluate and forecast
with it as with any bundle. No GPU and no Ray are needed.""",
    _combine_arguments,
    configured=False,
)
EXPORT = JobCommand(
    "export",
    "export a store or forecasts as NIfTI and DICOM SEG",
    """Export what a store or forecasts hold, on the patients' own grids: NIfTI and DICOM SEG.

    lesioncast export --config demo --subjects sub-0001 --channels w096/net2
    lesioncast export --config demo --subjects sub-0001 --dicom SERIES
    lesioncast export --config demo --forecasts FOLDER --dicom FOLDER

From a store: a BIDS derivative of all images of the subjects, or of the --channels alone. --dicom
adds their masks as DICOM SEG on the series of their current FLAIR. It names the folder of the
series for one subject, or a folder with one series folder for each subject, named as the subject
is. From --forecasts, whose maps are NIfTI files already: the maps as DICOM SEG, probabilities or,
with --threshold, masks. DICOM needs the extra `dicom`.""",
    _export_arguments,
)
DEMO = JobCommand(
    "demo",
    "run all jobs on this machine: simulate, convert, train, evaluate, forecast",
    """Run the whole pipeline on one machine: simulate, convert, train, evaluate, forecast.

    lesioncast demo --config demo

Each step runs as its own command would. A second run keeps what is finished.""",
    _no_arguments,
)

COMMANDS = (
    SIMULATE,
    CONVERT,
    QC,
    PRETRAIN,
    FINETUNE,
    FORECAST,
    EVALUATE,
    CALIBRATE,
    PUBLISH,
    COMBINE,
    EXPORT,
    DEMO,
)
