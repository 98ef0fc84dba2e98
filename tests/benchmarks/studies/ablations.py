"""Train the demo's two stages with one setting changed at a time, for several seeds.

    PYTHONPATH=.:platform python tests/benchmarks/studies/ablations.py --seeds 0,1,2

Simulate and convert once, then train and evaluate every variant with every seed and print the
tables (`ablation_tables.py`). All scores are of the trial `validation` (`trials.py`), so that
choosing by them uses no test case. Variants that change only stage 2 share a stage 1. A second run
keeps what is finished. `--variants` selects some of them; `recipe` is always included. `--cases`
scores fewer cases, evenly chosen.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lesioncast.arrays import evenly_spaced
from lesioncast.bundle.bundle import load_bundle, save_bundle
from lesioncast.bundle.description import METRICS_FILE
from lesioncast.bundle.json_files import read_json
from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import load_config
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.jobs import convert, evaluate, finetune, pretrain, simulate
from lesioncast.jobs.command.runner import configure_logging
from storage import open_store
from tests.benchmarks.studies.ablation_tables import NATS_FILE, curves, table
from tests.benchmarks.studies.image_information import nats
from tests.benchmarks.studies.trials import VALIDATION, make_trial

logger = logging.getLogger(__name__)
CONFIG = Path("jobs/configs/demo.yaml")
RECIPE = "recipe"
WEIGHTED = "lesion weight 10"
UNCORRECTED = "weight 10 not corrected"  # trained as that, drawn with the bias that it gives
VARIANTS: dict[str, tuple[str, ...]] = {
    RECIPE: (),
    "no pre-training": ("pretrain.steps=1",),
    "non-zero hint": ("control.zero_hint=false",),
    "no burden": ("control.burden=false",),
    "clinical covariates": (
        "covariates=[age, sex, disease_duration, edss, relapses]",
        "finetune.covariate_dropout=0.1",
    ),
    "min-SNR weighting": ("objective.weighting=min_snr",),
    "balanced finish": ("finetune.balanced=true",),
    "no average of weights": ("pretrain.ema=0.0", "finetune.ema=0.0"),
    WEIGHTED: ("objective.lesion_weight=10.0",),
    UNCORRECTED: (),
    "stage 2 three times as long": ("finetune.steps=1440",),
    "no voxel perceptrons": ("unet.voxel_head_width=0", "control.voxel_mlp_width=0"),
    "squared error": ("objective.mask_loss=squared",),
    "v-prediction": ("objective.prediction=v", "objective.mask_loss=squared"),
    "no lesion load": ("lesion_load_mm3=[]",),
}
"""One thing changed in each; what it is compared with is `recipe`."""
STAGE_2_ALONE = ("control.", "finetune.", "covariates=")
# Arms are not compared and nothing is calibrated here.
EVALUATION = ("evaluation.counterfactual_subjects=0", "evaluation.validation_subjects=0")


class Study(NamedTuple):
    """Settings shared by all runs: the flags of a job, the output folder, and what is scored."""

    flags: tuple[str, ...]
    out: Path
    #: Store whose test split is scored: that of the trial `validation`.
    scored: Path
    #: Cases to score, evenly over the split; 0 is all of them.
    cases: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", default="0,1,2", help="of training and drawing")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of the variants")
    parser.add_argument("--cases", type=int, default=0, help="to score; 0 is all")
    args = parser.parse_args(argv)
    configure_logging()
    config = load_config(args.config, ["name=learning"])
    study = Study(
        ("--config", str(args.config), "--set=name=learning"),
        config.paths.root / "learning",
        scored=VALIDATION.store(args.config),
        cases=args.cases,
    )
    seeds = [int(seed) for seed in args.seeds.split(",")]
    names = list(dict.fromkeys([RECIPE, *args.variants.split(",")]))
    with ray_cluster(config.ray):
        for job in (simulate, convert):
            require_success(job.main(study.flags), "the trial", job.__name__)
        make_trial(VALIDATION, args.config)
        for name in names:
            for seed in seeds:
                run_variant(name, seed, study)
    folders = {name: [run_folder(study, name, seed) for seed in seeds] for name in names}
    print("\n".join((*table(folders), "", *curves(folders))))
    return 0


def run_folder(study: Study, name: str, seed: int) -> Path:
    """Return the folder of one variant's run with one seed."""
    return study.out / f"{name.replace(' ', '-')}-{seed}"


def run_variant(name: str, seed: int, study: Study) -> None:
    """Run both stages and the evaluation of one variant."""
    out = run_folder(study, name, seed)
    if (out / NATS_FILE).is_file():
        return
    logger.info("%s, seed %d", name, seed)
    changes = VARIANTS[name]
    flags = (*study.flags, *overrides(seed, (*changes, *EVALUATION)))
    bundle = ("--bundle", str(out / "bundle"))
    if name == UNCORRECTED:
        run_variant(WEIGHTED, seed, study)
        link_training(run_folder(study, WEIGHTED, seed) / "runs", out)
        save_uncorrected(run_folder(study, WEIGHTED, seed) / "bundle", out / "bundle")
    else:
        earlier = [each for each in changes if changes_stage_1(each)]
        link_training(pretrain_once(earlier, seed, study), out / "runs")
        places = ("--out", str(out / "runs"), *bundle)
        require_success(finetune.main((*flags, *places)), f"{name}, seed {seed}", finetune.__name__)
    require_success(
        evaluate.main(
            (
                *flags,
                *bundle,
                f"--store={study.scored}",
                f"--set=evaluation.subjects={study.cases}",
                f"--out={out}",
            )
        ),
        f"{name}, seed {seed}",
        evaluate.__name__,
    )
    opened = open_store(study.scored)
    cases = cases_with_outcome(opened.select(split="test"))
    cases = evenly_spaced(cases, study.cases or len(cases))
    own, none = nats(opened, load_bundle(out / "bundle"), cases)
    np.savez(out / NATS_FILE, own=own, none=none)


def changes_stage_1(change: str) -> bool:
    """Return True if a changed key affects stage 1."""
    return not change.startswith(STAGE_2_ALONE)


def pretrain_once(changes: Sequence[str], seed: int, study: Study) -> Path:
    """Return the folder of stage 1 with these changes; train it if it is missing."""
    runs = study.out / "stage-1" / "-".join([*(changes or [RECIPE]), str(seed)])
    flags = (*study.flags, *overrides(seed, changes), "--out", str(runs))
    require_success(pretrain.main(flags), f"stage 1 of {runs.name}", pretrain.__name__)
    return runs / "pretrain"


def link_training(trained: Path, into: Path) -> None:
    """Link another run's training into `into`: stage 2 looks for stage 1 beside itself."""
    place = into / trained.name
    if not place.exists():
        into.mkdir(parents=True, exist_ok=True)
        place.symlink_to(trained.absolute())


def save_uncorrected(trained: Path, path: Path) -> None:
    """Save the bundle `trained` at `path` without correcting for the lesion weight."""
    bundle = load_bundle(trained)
    model = bundle.config.model
    uncorrected = replace(model, objective=replace(model.objective, lesion_weight=1.0))
    save_bundle(
        path,
        replace(bundle.config, model=uncorrected),
        unet=bundle.model.unet.state_dict(),
        control=bundle.model.control.state_dict(),
        metrics=read_json(trained / METRICS_FILE),
    )


def overrides(seed: int, changes: Sequence[str]) -> tuple[str, ...]:
    """Return the flags of a job for a seed and the changes."""
    return (f"--set=seed={seed}", *(f"--set={each}" for each in changes))


def require_success(code: int, what: str, job: str) -> None:
    """Raise SystemExit if a job failed."""
    if code != 0:
        raise SystemExit(f"{what}: {job} failed; its log says why")


if __name__ == "__main__":
    sys.exit(main())
