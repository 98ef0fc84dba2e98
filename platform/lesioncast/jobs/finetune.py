"""Job `finetune`: train stage 2, the ControlNet on the frozen UNet, and write the bundle."""

import argparse
from collections.abc import Sequence

from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.jobs.command.arguments import FINETUNE
from lesioncast.jobs.command.runner import run_job
from lesioncast.training.experiment import experiment_of, finetune_stage, pretrain_stage
from lesioncast.training.export import export_bundle
from lesioncast.training.spatial.base_maps import compute_base_maps
from lesioncast.training.spatial.fit import with_base_of_run
from lesioncast.training.trainer import discard, final_checkpoint, train
from storage import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(FINETUNE, finetune, argv)


def finetune(config: Config, args: argparse.Namespace) -> None:
    """Train stage 2 on the finished stage 1, or resume it, and write the bundle."""
    store = open_store(args.store or config.paths.store)
    runs = (args.out or config.paths.runs).absolute()
    experiment = experiment_of(
        store, runs, model=config.model, covariates=config.covariates, seed=config.seed
    )
    experiment = with_base_of_run(experiment)
    pretrained = final_checkpoint(pretrain_stage(config.pretrain, experiment))
    stage = finetune_stage(config.finetune, experiment, pretrained)
    if args.fresh:
        discard(stage)
    # Without workers this process trains, and a cluster would only take seconds and memory.
    cluster = config.ray if config.finetune.workers else None
    with ray_cluster(cluster, reads=[store.path], writes=[runs]):
        compute_base_maps(experiment, store, workers=config.finetune.workers)
        train(stage)
    bundle = (args.bundle or config.paths.bundle).absolute()
    export_bundle(stage, store, bundle, sampler=config.sampler)
