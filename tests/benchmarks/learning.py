"""What each choice of the recipe is worth: the demo's two stages with one thing changed, by seed.

    PYTHONPATH=.:platform python tests/benchmarks/learning.py --seeds 0,1,2

Simulates and converts once, then trains and evaluates every variant with every seed and prints a
table. Run again, what is finished is kept. `--variants` names some of them.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jobs import convert, evaluate, finetune, pretrain, simulate
from lesioncast.config import load_config
from lesioncast.evaluation.methods import ENSEMBLE, REGRESSION
from lesioncast.evaluation.output import METRICS
from lesioncast.evaluation.published import AUC, LOG_MSE
from lesioncast.evaluation.report import POOLED, WITHIN
from lesioncast.start import cluster, configure_logging

logger = logging.getLogger(__name__)
CONFIG = Path("jobs/configs/demo.yaml")
VARIANTS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "no burden": ("control.burden=false",),
    "no lesion load": ("unet.loads=[]",),
    "no voxel perceptrons": ("unet.head=0", "control.voxels=0"),
    "non-zero hint": ("control.zero_hint=false",),
    "min-SNR weighting": ("objective.weighting=min_snr",),
    "no average of weights": ("pretrain.ema=0.0", "finetune.ema=0.0"),
    "lesion weight 1": ("objective.lesion_weight=1.0",),
    "balanced finish": ("finetune.balanced=true",),
    "no pre-training": ("pretrain.steps=1",),
    "squared error": ("objective.mask_loss=squared",),
    "v-prediction": ("objective.prediction=v", "objective.mask_loss=squared"),
}
"""One thing changed in each; what it is compared with is `recipe`."""
HEAD = "| variant | seeds | AUC | AUC within arms | log-count MSE | P(active) | count | CRPS |"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing, then prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--seeds", default="0,1,2", help="of training and drawing")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of the variants")
    args = parser.parse_args(argv)
    configure_logging()
    config = load_config(args.config, ["name=learning"])
    flags = ["--config", str(args.config), "--set=name=learning"]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    names = args.variants.split(",")
    with cluster(config.ray):
        for job in (simulate, convert):
            job.main(flags)
        for seed in seeds:
            for name in names:
                run(name, seed, flags=flags, root=config.paths.root)
    records = {
        name: [
            json.loads((folder(config.paths.root, name, seed) / METRICS).read_text())
            for seed in seeds
        ]
        for name in names
    }
    print("\n".join(table(records)))
    return 0


def folder(root: Path, name: str, seed: int) -> Path:
    """Where one variant's run with one seed lies."""
    return root / "learning" / f"{name.replace(' ', '-')}-{seed}"


def run(name: str, seed: int, *, flags: Sequence[str], root: Path) -> None:
    """Both stages and the evaluation of one variant."""
    out = folder(root, name, seed)
    if (out / METRICS).is_file():
        return
    logger.info("%s, seed %d", name, seed)
    own = [*flags, f"--set=seed={seed}", *(f"--set={each}" for each in VARIANTS[name])]
    runs = ["--out", str(out / "runs")]
    bundle = ["--bundle", str(out / "bundle")]
    for job, places in (
        (pretrain, runs),
        (finetune, [*runs, *bundle]),
        (evaluate, [*bundle, "--out", str(out)]),
    ):
        if job.main([*own, *places]) != 0:
            raise SystemExit(f"{name}, seed {seed}: {job.__name__} failed; its log says why")


def table(records: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Means over the seeds, with the least and the greatest where there are several."""
    yield from (HEAD, "|" + "---|" * 8)
    for name, runs in records.items():
        yield line(name, len(runs), [scores(run, ENSEMBLE) for run in runs])
    first = next(iter(records.values()))[0]
    yield line("regression on scalars", 1, [scores(first, REGRESSION)])
    activity = first["variants"]["plain"]["activity"][POOLED]
    count = first["variants"]["plain"]["count"][POOLED]["true_mean"]
    rate = activity["positives"] / activity["cases"]
    yield f"| observed | | | | | {rate:.3f} | {count:.2f} | |"


def scores(record: dict[str, Any], method: str) -> list[float | None]:
    """AUC, AUC within arms, log-count MSE, mean P(active), mean count, CRPS."""
    pooled = record["variants"]["plain"]
    activity = pooled["activity"][POOLED]["methods"][method]
    count = pooled["count"][POOLED]["methods"][method]
    crps = count.get("crps", {"value": None})
    return [
        activity[AUC]["value"],
        activity[WITHIN]["value"],
        count[LOG_MSE]["value"],
        activity["mean"],
        count["mean"],
        crps["value"],
    ]


def line(name: str, seeds: int, found: Sequence[Sequence[float | None]]) -> str:
    """One row of the table."""
    cells = []
    for column in zip(*found, strict=True):
        known = [value for value in column if value is not None]
        spread = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
        cells.append(f"{mean(known):.3f}{spread}" if known else "")
    return f"| {name} | {seeds} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
