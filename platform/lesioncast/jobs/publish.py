"""Job `publish`: write a bundle with its evaluation, metadata and training log, to be shipped."""

import argparse
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lesioncast.bundle.bundle import Bundle, check_replaceable, load_bundle
from lesioncast.bundle.description import MANIFEST, METRICS_FILE, files_of
from lesioncast.bundle.json_files import read_json
from lesioncast.bundle.typicality import TYPICALITY_FILE, read_typicality
from lesioncast.errors import BundleError, ConfigError
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.reporting.bundle_card import write_card
from lesioncast.evaluation.reporting.files import METRICS
from lesioncast.evaluation.reporting.json_io import read_report
from lesioncast.evaluation.reporting.monai_metadata import (
    METADATA,
    Release,
    metadata_of,
    read_metadata,
    shorten_paths,
    write_metadata,
)
from lesioncast.jobs.command.arguments import PUBLISH
from lesioncast.jobs.command.runner import COMMAND, run_command
from storage.atomic import atomic_directory
from storage.text_files import read_text

logger = logging.getLogger(__name__)

TRAINING_LOG = "training.log"
MAX_MB = 10  # a clone and an installation should stay small
STAGES = ("pretrain", "finetune")
# A line of a job, or of a training worker that Ray passes on.
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d |\(RayTrainWorker")
TERMINAL_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(PUBLISH, publish, argv)


def publish(args: argparse.Namespace) -> None:
    """Write the bundle and what belongs to it to --output, unless one of the checks fails."""
    path, output = args.bundle.absolute(), args.output.absolute()
    bundle = load_bundle(path)
    report = read_report(args.evaluation / METRICS)
    check_evaluation(bundle, report, args.evaluation)
    log = "\n".join(line for file in args.log for line in log_lines(read_text(file)))
    metrics = read_json(path / METRICS_FILE)
    release = Release(
        version=args.release,
        changelog={args.release: args.change, **earlier_changes(output, args.release)},
        data=metrics["data"],
        seed=metrics["seed"],
        stages={name: stage["step"] for name, stage in metrics["stages"].items()},
        commands=commands_of(log, args.log),
    )
    metadata = metadata_of(bundle, report, release)
    check_replaceable(output)
    with atomic_directory(output) as folder:
        copy_bundle(bundle, folder)
        write_card(folder, report)
        write_metadata(folder, metadata)
        (folder / TRAINING_LOG).write_text(f"{log}\n", encoding="utf-8")
        check_size(folder)
        load_bundle(folder)
    logger.info("bundle %s (%s), version %s", output, bundle.digest[:12], args.release)


def check_evaluation(bundle: Bundle, report: EvaluationReport, folder: Path) -> None:
    """Raise BundleError unless the report is of this bundle, on a trial that it never saw.

    The job `evaluate` refuses to score cases of training or calibration. Here the whole trial must
    be another one.
    """
    source = folder / METRICS
    if report.bundle != bundle.digest:
        raise BundleError(
            f"{source}: expected the evaluation of bundle {bundle.digest[:12]}, got that of "
            f"{report.bundle[:12]}; evaluate {bundle.path}"
        )
    if bundle.calibration is None or read_typicality(bundle.path, bundle.digest) is None:
        raise BundleError(
            f"{bundle.path}: expected a bundle with a calibration and the features of typical "
            "patients, got one without; train it with priors: load or both"
        )
    store = None if report.provenance is None else report.provenance.store
    if store in (None, bundle.calibration.cohort.store):
        raise BundleError(
            f"{source}: expected an evaluation on another trial than that of the training, got "
            f"{'one of an unknown trial' if store is None else 'the same trial'}; simulate one "
            "with another simulation.seed and evaluate the bundle on its test split"
        )


def earlier_changes(output: Path, version: str) -> Mapping[str, str]:
    """Return the changelog of the bundle that `output` replaces, empty without one.

    Raise ConfigError if that has the same version.
    """
    if not (output / METADATA).is_file():
        return {}
    changelog = read_metadata(output).changelog
    if version in changelog:
        raise ConfigError(
            f"--release: expected a version after {next(iter(changelog))}, got {version}, which "
            f"{output} has had; choose a higher one"
        )
    return changelog


def log_lines(text: str) -> Iterator[str]:
    """Yield the lines of jobs in a log, without colours and with short paths."""
    for line in TERMINAL_COLOUR.sub("", text).splitlines():
        if LOG_LINE.match(line):
            yield shorten_paths(line).rstrip()


def commands_of(log: str, files: Sequence[Path]) -> tuple[str, ...]:
    """Return the command lines in the order in which the log first has them.

    Raise ConfigError unless both training stages are among them.
    """
    found = re.findall(rf"^[\d:]+ {re.escape(COMMAND)}(.+)$", log, re.M)
    commands = tuple(dict.fromkeys(found))
    if missing := [stage for stage in STAGES if f"lesioncast {stage} " not in "\n".join(commands)]:
        raise ConfigError(
            f"--log: expected the output of {' and '.join(missing)} with its command, got none in "
            f"{', '.join(map(str, files))}; run the same commands again, which resumes, and add "
            "their output"
        )
    return commands


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy the files that the manifest lists, the manifest, and the features of typicality."""
    listed = files_of(
        bundle.config, calibrated=bundle.calibration is not None, members=bundle.member_count
    )
    for name in (*listed, MANIFEST, TYPICALITY_FILE):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)


def check_size(folder: Path) -> None:
    """Raise BundleError if the files in the folder are larger than a package should hold."""
    files = (path for path in folder.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    if sum(sizes.values()) > MAX_MB * 10**6:
        largest = max(sizes, key=lambda name: sizes[name])
        raise BundleError(
            f"{folder}: expected at most {MAX_MB} MB, got {sum(sizes.values()) / 1e6:.1f} MB, of "
            f"which {largest} takes {sizes[largest] / 1e6:.1f} MB; train a smaller model"
        )
