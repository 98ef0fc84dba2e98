"""Tables of `ablations.py`, computed from the files of its runs.

Values are means over the seeds, with minimum and maximum. Differences are paired: a variant minus
the recipe on the same cases with the same seeds. Their 95 % intervals resample cases and seeds.
Cases are those scored of the trial `validation`; the nats use only those with lesions.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from lesioncast.evaluation.baselines.methods import REGRESSION, SAMPLED, stated_activity
from lesioncast.evaluation.metrics.bootstrap import LEVEL, bootstrap_weights, resampled_mean
from lesioncast.evaluation.metrics.scores import (
    log_count_errors,
    resampled_auc,
)
from lesioncast.evaluation.reporting.files import CASES
from lesioncast.training.progress import read_metrics

NATS_FILE = "validation_nats.npz"
DRAWS = 1000
HEAD = (
    "| variant | seeds | AUC | minus recipe | log-count MSE | minus recipe | count "
    "| nats a case | minus recipe | images save |"
)
CURVE = (25, 50, 100, 200, 300, 400)

Floats = npt.NDArray[np.float64]
Folders = Mapping[str, Sequence[Path]]
"""Variant -> the folder of its run with each seed; the first variant is the recipe."""
Resampled = Callable[[Path, Floats], Floats]
"""(run, weights [b, n]) -> its score in every resample [b]."""


def table(folders: Folders) -> Iterator[str]:
    """Yield one row per variant, then the regression and the observed mean."""
    recipe = next(iter(folders.values()))
    yield from (HEAD, "|" + "---|" * 10)
    for name, runs in folders.items():
        against = [
            "" if runs == recipe else difference(runs, recipe, score)
            for score in (auc, log_count_error, mean_nats)
        ]
        cells = (
            mean_and_range([auc(run, unit_weights(run)) for run in runs]),
            against[0],
            mean_and_range([log_count_error(run, unit_weights(run)) for run in runs]),
            against[1],
            mean_and_range([np.mean(column(run, f"lesions_{SAMPLED}")) for run in runs], digits=2),
            mean_and_range(
                [mean_nats(run, np.ones((1, len(nats_with_images(run))))) for run in runs], digits=2
            ),
            against[2],
            mean_and_range(
                [np.mean(nats_without_images(run) - nats_with_images(run)) for run in runs],
                digits=2,
            ),
        )
        yield f"| {name} | {len(runs)} | " + " | ".join(cells) + " |"
    yield regression(recipe[0])


def regression(run: Path) -> str:
    """Return the row of the regression on image features, with the observed mean count."""
    true = column(run, "lesions")
    area = roc_auc_score(true > 0, column(run, f"p_active_{REGRESSION}"))
    predicted = column(run, f"lesions_{REGRESSION}")
    error = log_count_errors(true, predicted).mean()
    return (
        f"| regression on image features | | {area:.3f} | | {error:.3f} | | {predicted.mean():.2f} "
        f"(observed {true.mean():.2f}) | | | |"
    )


def curves(folders: Folders) -> Iterator[str]:
    """Yield 1000 x stage 2's training loss, averaged over the steps since the last report."""
    losses = {
        name: [
            {line["step"]: line["loss"] for line in read_metrics(run / "runs" / "finetune")}
            for run in runs
        ]
        for name, runs in folders.items()
    }
    steps = [step for step in CURVE if all(step in run for each in losses.values() for run in each)]
    yield "| 1000 x loss of stage 2 at step | " + " | ".join(map(str, steps)) + " |"
    yield "|" + "---|" * (len(steps) + 1)
    for name, runs in losses.items():
        cells = [f"{1000 * np.mean([loss[step] for loss in runs]):.2f}" for step in steps]
        yield f"| {name} | " + " | ".join(cells) + " |"


def auc(run: Path, weights: Floats) -> Floats:
    """Return the AUC of the P(active) that a forecast states in every resample [b]."""
    active = column(run, "lesions") > 0
    stated = stated_activity([name.removeprefix("p_active_") for name in rows(run)[0]])
    return resampled_auc(active, column(run, f"p_active_{stated}"), weights)


def log_count_error(run: Path, weights: Floats) -> Floats:
    """Return the log-count error of the mean count, as in the paper's table 4."""
    errors = log_count_errors(column(run, "lesions"), column(run, f"lesions_{SAMPLED}"))
    return resampled_mean(errors, weights)


def mean_nats(run: Path, weights: Floats) -> Floats:
    """Return the nats per case with the patient's images, averaged over noise levels."""
    return resampled_mean(nats_with_images(run), weights)


def difference(runs: Sequence[Path], recipe: Sequence[Path], score: Resampled) -> str:
    """Return the mean difference over the seeds with its interval."""
    cases = (
        len(nats_with_images(recipe[0]))
        if score is mean_nats
        else len(column(recipe[0], "lesions"))
    )
    weights = np.concatenate([np.ones((1, cases)), bootstrap_weights(cases, draws=DRAWS, seed=0)])
    gaps = np.stack(
        [score(a, weights) - score(b, weights) for a, b in zip(runs, recipe, strict=True)]
    )
    seeds = bootstrap_weights(len(runs), draws=DRAWS, seed=1) / len(runs)
    drawn = (seeds * gaps[:, 1:].T).sum(axis=1)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return f"{gaps[:, 0].mean():+.3f} ({low:+.3f} to {high:+.3f})"


def mean_and_range(values: Sequence[Floats | np.floating[npt.NBitBase]], *, digits: int = 3) -> str:
    """Return the mean, with minimum and maximum if there are several values."""
    numbers = np.array([float(np.squeeze(value)) for value in values])
    mean = f"{numbers.mean():.{digits}f}"
    return (
        f"{mean} ({numbers.min():.{digits}f} to {numbers.max():.{digits}f})"
        if numbers.size > 1
        else mean
    )


def unit_weights(run: Path) -> Floats:
    """Return unit weights [1, n]: the cases without resampling."""
    return np.ones((1, len(column(run, "lesions"))))


@cache
def rows(run: Path) -> list[dict[str, str]]:
    """Read the run's cases.csv."""
    with (run / CASES).open() as text:
        return list(csv.DictReader(text))


def column(run: Path, name: str) -> Floats:
    """Return one column of the test cases, [n]."""
    return np.array([float(row[name]) for row in rows(run)])


def nats_with_images(run: Path) -> Floats:
    """Return the nats with the patient's images, [n], averaged over noise levels."""
    return np.asarray(np.load(run / NATS_FILE)["own"].mean(axis=1))


def nats_without_images(run: Path) -> Floats:
    """Return the nats without images, [n], averaged over noise levels."""
    return np.asarray(np.load(run / NATS_FILE)["none"].mean(axis=1))
