"""A BIDS trial into a store, one Ray task a shard.

The new store grows beside the old one and takes its place once its case table is written, so that
readers meet one or the other and never a part. A task fills a whole shard: two tasks in one shard
would lose each other's cases.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from storage.bids import Subject
from storage.cases import Case, CaseTable, encode_table, write_refusals
from storage.errors import CaseError, Refusal, StorageError
from storage.layout import CASE_TABLE, CHANNELS, SESSIONS, StoreSpec, array_specs, pack_masks
from storage.nifti import write_atomic
from storage.plan import Conversion
from storage.prepare import Facts, prepare
from storage.settings import StoreSettings
from storage.split import assign_splits
from storage.store import Store, create_arrays, open_arrays, open_store

log = logging.getLogger(__name__)

_REPORT_EVERY = 2.0  # seconds

# What became of a row: facts for the case table, or why its subject is not in it.
_Outcome = tuple[int, Facts | Refusal]


@dataclass(frozen=True)
class _Shard:
    """The work of one task: rows `first .. first + len(subjects)`, which are a whole shard."""

    bids: Path
    store: Path
    first: int
    subjects: tuple[Subject, ...]
    spec: StoreSpec
    settings: StoreSettings


def convert(conversion: Conversion) -> Store:
    """Make the store on the Ray cluster of this process, in place of what is at its path.

    `table.refused` of the store names the subjects that could not be converted. Raises StorageError
    where none could; the old store then stays.
    """
    inputs = conversion.digest()  # first: what changes from here on is converted by the next run
    with _replacing(conversion.path) as folder:
        rows, size = len(conversion.subjects), conversion.settings.cases_per_shard
        create_arrays(folder, conversion.spec, rows=rows, rows_per_shard=size)
        table = _case_table(conversion, inputs, _run(_shards(conversion, folder)))
        write_refusals(table.refused, folder)
        write_atomic(folder / CASE_TABLE, encode_table(table))
    return open_store(conversion.path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its place when the block ends, and is gone if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.partial"):
        log.warning("%s: left by another conversion, running or interrupted", stale)
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    retired = folder.with_suffix(".retired")
    try:
        yield folder
        if path.exists():
            path.rename(retired)
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def _shards(conversion: Conversion, folder: Path) -> list[_Shard]:
    size = conversion.settings.cases_per_shard
    return [
        _Shard(
            bids=conversion.bids,
            store=folder,
            first=first,
            subjects=conversion.subjects[first : first + size],
            spec=conversion.spec,
            settings=conversion.settings,
        )
        for first in range(0, len(conversion.subjects), size)
    ]


def _run(shards: Sequence[_Shard]) -> list[_Outcome]:
    """Convert all shards in parallel; outcomes in the order of rows."""
    total = sum(len(shard.subjects) for shard in shards)
    started = reported = time.monotonic()
    outcomes: list[_Outcome] = []
    running = [_convert_shard.remote(shard) for shard in shards]
    while running:
        done, running = ray.wait(running)
        outcomes += [outcome for shard in ray.get(done) for outcome in shard]
        now = time.monotonic()
        if now - reported > _REPORT_EVERY or not running:
            reported = now
            rate = len(outcomes) / (now - started)
            left = (total - len(outcomes)) / rate
            log.info("%d of %d subjects, %.1f/s, %.0f s left", len(outcomes), total, rate, left)
    return sorted(outcomes, key=lambda outcome: outcome[0])


@ray.remote
def _convert_shard(shard: _Shard) -> list[_Outcome]:
    """Fill one shard; after a crash Ray runs it again, over what it had written."""
    blocks = {
        name: np.zeros((len(shard.subjects), *array.shape), array.dtype)
        for name, array in array_specs(shard.spec.slab).items()
    }
    outcomes: list[_Outcome] = []
    for place, subject in enumerate(shard.subjects):
        views = {name: block[place, ...] for name, block in blocks.items()}
        outcomes.append((shard.first + place, _convert_case(subject, shard, views)))
    for name, array in open_arrays(shard.store, mode="r+").items():
        array[shard.first : shard.first + len(shard.subjects)] = blocks[name]
    return outcomes


def _convert_case(
    subject: Subject, shard: _Shard, views: dict[str, np.ndarray[Any, Any]]
) -> Facts | Refusal:
    try:
        facts, arrays = prepare(subject, shard.bids, settings=shard.settings, arms=shard.spec.arms)
    except CaseError as error:
        return error.refusal
    views["flair"][:] = arrays.flair
    views["masks"][:] = pack_masks(arrays.masks)
    views["parcellation"][:] = arrays.parcellation
    views["present"][:] = arrays.present
    return facts


def _case_table(conversion: Conversion, inputs: str, outcomes: Sequence[_Outcome]) -> CaseTable:
    refused = tuple(outcome for _, outcome in outcomes if isinstance(outcome, Refusal))
    facts = [(row, outcome) for row, outcome in outcomes if isinstance(outcome, Facts)]
    if not facts:
        raise StorageError(
            f"{conversion.bids}: none of {len(refused)} subjects could be converted; "
            f"the first: {refused[0]}."
        )
    arms = {each.subject: each.arm if _teaches(each) else None for _, each in facts}
    splits = assign_splits(arms, conversion.settings.split, seed=conversion.seed)
    cases = tuple(
        Case(
            index=index,
            row=row,
            arm_index=-1 if each.arm is None else conversion.arms.index(each.arm),
            split=splits[each.subject],
            **vars(each),
        )
        for index, (row, each) in enumerate(facts)
    )
    return CaseTable(inputs, str(conversion.bids), cases, refused)


def _teaches(facts: Facts) -> bool:
    """Whether a case has what a forecast is learned from: NET2 at w096, under a known arm."""
    net2 = facts.present[SESSIONS.index("w096"), CHANNELS.index("net2")]
    return facts.arm is not None and bool(net2)
