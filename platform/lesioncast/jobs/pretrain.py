"""Job `pretrain`: train stage 1, the UNet, on the outcome FLAIR and NET2 given the arm."""

import argparse
from collections.abc import Sequence

from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.jobs.command.arguments import PRETRAIN
from lesioncast.jobs.command.runner import run_job
from lesioncast.training.experiment import experiment_of, pretrain_stage
from lesioncast.training.spatial.base_maps import compute_base_maps, discard_base
from lesioncast.training.spatial.fit import with_fitted_base
from lesioncast.training.trainer import discard, train
from storage import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(PRETRAIN, pretrain, argv)


def pretrain(config: Config, args: argparse.Namespace) -> None:
    """Train stage 1, or resume it from its last checkpoint."""
    store = open_store(args.store or config.paths.store)
    runs = (args.out or config.paths.runs).absolute()
    experiment = experiment_of(
        store, runs, model=config.model, covariates=config.covariates, seed=config.seed
    )
    if args.fresh:
        discard(pretrain_stage(config.pretrain, experiment))
        discard_base(experiment)
    experiment = with_fitted_base(experiment, store)
    stage = pretrain_stage(config.pretrain, experiment)
    # Without workers this process trains, and a cluster would only take seconds and memory.
    cluster = config.ray if config.pretrain.workers else None
    with ray_cluster(cluster, reads=[store.path], writes=[runs]):
        compute_base_maps(experiment, store, workers=config.pretrain.workers)
        train(stage)
