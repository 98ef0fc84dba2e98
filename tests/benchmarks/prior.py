"""What the prior of the lesion load learns from which numbers and rows, beside regressions.

    PYTHONPATH=.:platform python tests/benchmarks/prior.py out/demo/store.zarr out/unseen/store.zarr

Fits the prior to the first store's training cases in several ways, each with every seed, and scores
P(active) at w096 on its test cases and on all cases of the other stores: means over the seeds, and
how far those lie apart. `--cases` fits to so many of the training cases. No images are drawn and no
other network is needed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lesioncast.config import Config, load_config
from lesioncast.diffusion.controlnet import BURDEN
from lesioncast.diffusion.load import LoadPrior
from lesioncast.evaluation.baselines import Floats, fit_scalar_model
from lesioncast.evaluation.outcomes import evaluable
from lesioncast.evaluation.scalars import image_scalars
from lesioncast.forecasting.heldout import spread_out
from lesioncast.slab import START, named, outside
from lesioncast.training.loads import ROWS, Patients, fit_load_prior, patients_of
from storage import Case, Store, open_store

NUMBER = 2  # place among the numbers of a channel


class Known(NamedTuple):
    """Some cases of a store, as the prior and as a regression are told them [n, scalar]."""

    patients: Patients
    scalars: Floats


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row for each way of fitting, and one for the regression."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cases", type=int, help="of the training split; all where not given")
    args = parser.parse_args(argv)
    config = load_config(args.config, [])
    first, *others = (open_store(path.absolute()) for path in args.stores)
    train = evaluable(first.select(split="train"))
    known = told(spread_out(train, args.cases or len(train)), first, config)
    asked = [told(evaluable(first.select(split="test")), first, config)]
    asked += [told(evaluable(each.cases), each, config) for each in others]
    sizes = [len(each.scalars) for each in asked]
    print("| P(active) by | " + " | ".join(f"AUC, {n} | AP, {n}" for n in sizes) + " |")
    print("|" + "---|" * (1 + 2 * len(asked)))
    for numbers in (False, True):
        for rows in (config.finetune.batch_size, ROWS):
            name = f"prior, {'shares and numbers' if numbers else 'shares'}, {rows} rows a step"
            runs = [
                list(
                    scores(
                        fitted(known, config, seed, rows=rows, numbers=numbers),
                        asked,
                        numbers=numbers,
                    )
                )
                for seed in range(args.seeds)
            ]
            print(line(name, np.array(runs)), flush=True)
    arms = len(config.arms)
    model = fit_scalar_model(known.scalars, *observed(known), arms=arms)
    found = [score(each, model.probability(each.scalars, observed(each)[0])) for each in asked]
    print(line("regression on image scalars", np.array([found]).reshape(1, -1)))
    return 0


def told(cases: Sequence[Case], store: Store, config: Config) -> Known:
    """The cases, read from the store."""
    scalars = [image_scalars(store.read(case.index), store.spec.spacing) for case in cases]
    return Known(patients_of(cases, store, config.model), np.array(scalars))


def observed(of: Known) -> tuple[npt.NDArray[np.int64], Floats]:
    """Arm and lesions, both [n]."""
    return of.patients.arm.numpy(), of.patients.lesions.double().numpy()


def fitted(known: Known, config: Config, seed: int, *, rows: int, numbers: bool) -> LoadPrior:
    """The prior, without the numbers of lesions where these are not to be known."""
    torch.manual_seed(seed)
    channels, unet = config.model.control.channels, config.model.unet
    prior = LoadPrior(
        BURDEN * channels, arms=unet.arms + 1, classes=unet.load_classes, covariates=()
    )
    later = outside(named(config.model.control.condition), (START,))
    patients = limited(known.patients, numbers=numbers)
    fit_load_prior(prior, patients, config.finetune, seed=seed, later=later, rows=rows)
    return prior


def limited(patients: Patients, *, numbers: bool) -> Patients:
    """With the numbers of lesions or without."""
    burden = patients.burden.clone()
    burden[:, :, NUMBER] *= numbers
    return replace(patients, burden=burden)


@torch.no_grad()
def scores(prior: LoadPrior, asked: Sequence[Known], *, numbers: bool) -> Iterator[float]:
    """AUC and average precision of each."""
    for each in asked:
        patients = limited(each.patients, numbers=numbers)
        logits = prior(prior.patient(patients.burden, patients.covariates), patients.arm)
        yield from score(each, (1 - logits.double().softmax(1)[:, 0]).numpy())


def score(of: Known, chance: Floats) -> tuple[float, float]:
    """AUC and average precision of P(active) [n]."""
    active = observed(of)[1] > 0
    return roc_auc_score(active, chance), average_precision_score(active, chance)


def line(name: str, runs: Floats) -> str:
    """Means over the seeds [seed, score], and the least to the greatest."""
    cells = []
    for column in runs.T:
        cell = f"{column.mean():.3f}"
        cells.append(
            f"{cell} ({column.min():.3f} to {column.max():.3f})" if len(runs) > 1 else cell
        )
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
