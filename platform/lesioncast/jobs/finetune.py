"""Stage 2: train the ControlNet on the frozen UNet of stage 1, then write the bundle.

    python jobs/finetune.py --config jobs/configs/demo.yaml

The same command again resumes from the last checkpoint, or writes the finished run's bundle again.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import load_config
from lesioncast.errors import ConfigError, LesioncastError
from lesioncast.training.experiment import experiment_of, finetune_stage, pretrain_stage
from lesioncast.training.export import export_bundle
from lesioncast.training.trainer import discard, final_checkpoint, train
from storage import StorageError, open_store, parse_location

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = job_parser(__doc__)
    parser.add_argument(
        "--store", type=parse_location, help="the Zarr store (default: <root>/store.zarr)"
    )
    parser.add_argument("--out", type=Path, help="where runs are kept (default: <root>/runs)")
    parser.add_argument("--bundle", type=Path, help="the bundle (default: <root>/bundle)")
    parser.add_argument("--fresh", action="store_true", help="discard this run and start over")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides)
        store = open_store(args.store or config.paths.store)
        runs = (args.out or config.paths.runs).absolute()
        experiment = experiment_of(
            store, runs, model=config.model, covariates=config.covariates, seed=config.seed
        )
        pretrained = final_checkpoint(pretrain_stage(config.pretrain, experiment))
        stage = finetune_stage(config.finetune, experiment, pretrained)
        if args.fresh:
            discard(stage)
        with ray_cluster(config.ray, reads=[store.path], writes=[runs]):
            train(stage)
        bundle = (args.bundle or config.paths.bundle).absolute()
        export_bundle(stage, store, bundle, sampler=config.sampler)
    except ConfigError as error:
        parser.error(str(error))
    except (StorageError, LesioncastError) as error:
        logger.error("%s", error)
        return 1
    return 0
