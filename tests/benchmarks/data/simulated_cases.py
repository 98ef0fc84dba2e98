"""Write simulated cases as arrays on disk without Ray: one node cache per split.

Beside the arrays of `lesioncast.training.data.node_cache` it writes what an evaluation of these
cases needs: subjects, image features and observed lesions.
"""

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.evaluation.features.image_features import measure_case
from lesioncast.evaluation.features.outcomes import (
    OutcomeTable,
    net2_counts_current,
    observed_regions,
)
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.training.data.dataset import CaseDataset
from storage import StoreSettings, pack_masks
from storage.preprocess.prepare import preprocess_subject
from storage.store.split import assign_splits
from storage.trial.dataset import TrialSubject, scan_trial

SPLIT = (0.8, 0.0, 0.2)  # nothing is chosen on a validation split here
BLOCK = 8
# Fields of an OutcomeTable, beside the arrays of a node cache.
OUTCOMES = ("image_features", "plain", "opened", "net2_count_current", "regions")
ARRAYS = ("flair", "masks", "present", "arm", "active", *OUTCOMES)

Built = TypeVar("Built")
Row = dict[str, npt.NDArray[Any]]


def load_sections(path: Path) -> dict[str, dict[str, Any]]:
    """Return the sections of a configuration. `lesioncast.config` would need pydantic and Ray."""
    raw: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())
    return raw


def from_section(kind: type[Built], section: dict[str, Any]) -> Built:
    """Return a section as its dataclass, with lists turned into tuples."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in section.items()})


@dataclass(frozen=True)
class Split:
    """The cases of one split and their observed outcomes."""

    cases: CaseDataset
    outcomes: OutcomeTable


def open_split(folder: Path) -> Split:
    """Open a folder that `write_splits` wrote."""
    names = ("arm", *OUTCOMES)
    rest = {name: np.load(folder / f"{name}.npy") for name in names}
    subjects = tuple(json.loads((folder / "subjects.json").read_text()))
    trial = (None,) * len(subjects)
    outcomes = OutcomeTable(
        case=tuple(range(len(subjects))), subjects=subjects, trial=trial, **rest
    )
    return Split(CaseDataset.open(folder), outcomes)


def write_splits(
    folder: Path, sections: dict[str, dict[str, Any]], *, subjects: int, workers: int
) -> None:
    """Simulate `subjects` patients, cut their slabs and write `train` and `test` below `folder`."""
    cohort = replace(from_section(SimulationSettings, sections["simulation"]), subjects=subjects)
    store = replace(from_section(StoreSettings, sections["store"]), split_fractions=SPLIT)
    with (
        tempfile.TemporaryDirectory() as place,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        root = Path(place, "bids")
        missing = initialise_dataset(root, cohort)
        blocks = [missing[first : first + BLOCK] for first in range(0, len(missing), BLOCK)]
        list(pool.map(partial(write_subjects, root, cohort), blocks))
        finalise_dataset(root, cohort)
        trial = scan_trial(root, store.layout)
        rows = list(pool.map(partial(_row, root=root, store=store), trial, chunksize=BLOCK))
    arms = {s.name: PAPER_ARM_NAMES[int(row["arm"])] for s, row in zip(trial, rows, strict=True)}
    splits = assign_splits(arms, SPLIT, seed=0)
    for name in ("train", "test"):
        chosen = [row for s, row in enumerate(rows) if splits[trial[s].name] == name]
        _write(folder / name, chosen, [s.name for s in trial if splits[s.name] == name])


def _row(subject: TrialSubject, *, root: Path, store: StoreSettings) -> Row:
    facts, arrays = preprocess_subject(subject, root, settings=store, arms=PAPER_ARM_NAMES)
    measured = measure_case(0, arrays, store.spacing)
    assert measured.outcome is not None
    assert facts.arm is not None
    values = {
        "flair": arrays.flair,
        "masks": pack_masks(arrays.masks),
        "present": arrays.present,
        "arm": PAPER_ARM_NAMES.index(facts.arm),
        "active": measured.outcome.plain > 0,
        "image_features": measured.image_features,
        "plain": float(measured.outcome.plain),
        "opened": float(measured.outcome.opened),
        "net2_count_current": net2_counts_current([measured])[0],
        "regions": observed_regions([measured])[0],
    }
    return {name: np.asarray(value) for name, value in values.items()}


def _write(folder: Path, rows: Sequence[Row], subjects: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", np.stack([row[name] for row in rows]))
    (folder / "subjects.json").write_text(json.dumps(subjects))
