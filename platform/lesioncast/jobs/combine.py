"""Job `combine`: make one bundle of several that differ by their training seed."""

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lesioncast.bundle.bundle import BundlePrior, load_bundle_prior, save_same_weights
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.bundle.description import CASE_DIGITS, MANIFEST, METRICS_FILE
from lesioncast.bundle.json_files import read_json
from lesioncast.bundle.members import CONTROL_FILE
from lesioncast.errors import BundleError, ConfigError
from lesioncast.forecasting.runtime import one_thread
from lesioncast.forecasting.training_data import check_unseen
from lesioncast.jobs.command.arguments import COMBINE
from lesioncast.jobs.command.runner import run_command
from lesioncast.training.lesion_load_prior.bundle_calibration import (
    CALIBRATION_SPLIT,
    calibrate_on_split,
    calibration_cases,
)
from storage import Store, open_store

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_command(COMBINE, combine, argv)


def combine(args: argparse.Namespace) -> None:
    """Write a bundle with the members of all bundles, calibrated on cases of the store."""
    if len(args.bundles) < 2:
        raise ConfigError(f"bundles: expected two or more, got {args.bundles[0]} alone")
    store = open_store(args.store)
    parents = [load_bundle_prior(path.absolute()) for path in args.bundles]
    metrics = [read_json(parent.path / METRICS_FILE) for parent in parents]
    check_alike(parents, metrics)
    check_trained_on(parents[0], metrics[0], store)
    with one_thread():
        calibration = calibrate_on_split(
            [prior for parent in parents for prior in parent.priors],
            store,
            parents[0].config.model,
            split=CALIBRATION_SPLIT,
        )
    output = args.output.absolute()
    digest = save_same_weights(
        output,
        *parents,
        config=parents[0].config,
        metrics={**metrics[0], "members": members_of(parents, metrics)},
        calibration=calibration,
    )
    members = sum(parent.member_count for parent in parents)
    logger.info("bundle %s (%s) of %d members", output, digest[:12], members)


def check_alike(parents: Sequence[BundlePrior], metrics: Sequence[Metrics]) -> None:
    """Raise BundleError unless all bundles differ by their seed alone."""
    first = dict(_leaves(_origin(parents[0], metrics[0])))
    for parent, own in zip(parents[1:], metrics[1:], strict=True):
        found = dict(_leaves(_origin(parent, own)))
        for name in {**first, **found}:
            if first.get(name) != found.get(name):
                raise BundleError(
                    f"{parent.path}: expected the {name} of {parents[0].path}, "
                    f"{_shown(first.get(name))}, got {_shown(found.get(name))}; combine bundles "
                    "that were trained on the same cases with settings that differ by the seed"
                )
    weights = [digest for parent in parents for digest in _weights_of(parent)]
    if len(set(weights)) < len(weights):
        raise BundleError(
            f"{parents[-1].path}: expected bundles of different training seeds, got the same "
            "weights twice; name each bundle once, and train others with --set seed=1"
        )


def check_trained_on(parent: BundlePrior, metrics: Metrics, store: Store) -> None:
    """Raise an error unless the store holds the training cases, and others to calibrate on."""
    check_compatible(parent, store)
    missing = set(metrics["cases"]) - {case.digest[:CASE_DIGITS] for case in store.cases}
    if missing:
        raise BundleError(
            f"{store.path}: expected the {len(metrics['cases'])} cases that {parent.path} was "
            f"trained on, got all but {len(missing)} of them; give the store of the training"
        )
    check_unseen(parent, calibration_cases(store, CALIBRATION_SPLIT))


def members_of(
    parents: Sequence[BundlePrior], metrics: Sequence[Metrics]
) -> list[Mapping[str, Any]]:
    """Return what metrics.json says of each member: its bundle, seed and training."""
    return [
        member
        for parent, own in zip(parents, metrics, strict=True)
        for member in own.get("members", [_member(parent, own)])
    ]


def _member(parent: BundlePrior, metrics: Metrics) -> Mapping[str, Any]:
    shared = ("data", "cases", "balance")
    own = {name: value for name, value in metrics.items() if name not in shared}
    return {"bundle": parent.digest, **own}


def _origin(parent: BundlePrior, metrics: Metrics) -> Mapping[str, Any]:
    """Return what members must have in common: configuration, training cases and settings."""
    stages = metrics["stages"].items()
    return {
        "configuration": asdict(parent.config),
        "training cases": metrics["cases"],
        "settings": {name: stage.get("settings") for name, stage in stages},
    }


def _leaves(record: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of nested mappings with its path, such as configuration.model.arms."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, record


def _shown(value: Any) -> str:
    """Return a value for a message; long ones are given by their number."""
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"{len(value)} of them"
    return str(value)


def _weights_of(parent: BundlePrior) -> list[str]:
    """Return the SHA-256 of the ControlNet of each member."""
    digests = read_json(parent.path / MANIFEST)["sha256"]
    return [digest for name, digest in digests.items() if name.rsplit("/", 1)[-1] == CONTROL_FILE]
