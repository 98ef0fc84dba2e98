"""A BIDS trial into a store that may die at any moment: shards one by one, the case table last.

What is there under a shard's name is finished and kept, so that the same command goes on where
another was killed. Readers see the store that the last case table made, until the next one is
there; only then are shards removed that do not count any more.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray
from ray.exceptions import RayError, RayTaskError

from storage.backends.backend import PARTIAL_SUFFIX, Commit, StoreBackend
from storage.backends.local import open_backend
from storage.convert.build_case_table import build_case_table, previous_splits
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.file_digests import digest_files
from storage.convert.plan import ConversionPlan, Shard, inputs_digest, plan_shards
from storage.errors import StorageError, StoreError
from storage.layout import (
    CASE_TABLE,
    REFUSED_TABLE,
    ROOT_METADATA,
    SHARDS,
    shard_paths,
    shard_record_path,
)
from storage.store.case_table import CaseTable, encode_table, exclusions_tsv
from storage.store.shards import ShardRecord, encode_root, load_complete_shards, sha256
from storage.store.store import Store, is_lesioncast_store, open_store, read_table

log = logging.getLogger(__name__)

_REPORT_EVERY = 2.0  # seconds

# Builds shards somewhere; yields the number of subjects of each as it is done.
Builder = Callable[[Sequence[ShardTask]], Iterable[int]]


def build_on_ray(builds: Sequence[ShardTask]) -> Iterable[int]:
    """One task a shard on the Ray cluster of this process; Ray runs it again where its worker dies.

    Raises StorageError where a shard cannot be made.
    """
    task = ray.remote(build_shard)
    running = [task.remote(build) for build in builds]
    while running:
        done, running = ray.wait(running)
        try:
            yield from ray.get(done)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, StorageError) else error) from None
        except RayError as error:
            raise StorageError(
                f"{builds[0].path}: expected workers that live, got {error}; run the same command "
                "again: what is finished is kept."
            ) from error


def convert(conversion: ConversionPlan, *, build: Builder = build_on_ray) -> Store:
    """Make the store, or bring it up to date; nothing is built where it is.

    `table.refused` of the store names the subjects that could not be converted. Raises StorageError
    where none could, where another conversion is writing, where a file cannot be written, or where
    the path holds something else; a store that was there then stays.
    """
    place = open_backend(conversion.path)
    _check_destination(place)
    with place.write_lock() as commit:
        before = _initialise_store(place)
        _update_store(conversion, place, before=before, build=build, commit=commit)
    return open_store(conversion.path)


def _check_destination(place: StoreBackend) -> None:
    if not is_lesioncast_store(place) and any(
        not name.endswith(PARTIAL_SUFFIX) for name in place.list_files()
    ):
        raise StorageError(
            f"{place.location}: expected a store or nothing, got something else; "
            "choose another place."
        )


def _initialise_store(place: StoreBackend) -> CaseTable | None:
    """Mark the place as ours; the case table that is there, if one is that this code can read."""
    root = encode_root()
    names = place.list_files()
    if ROOT_METADATA in names and place.read(ROOT_METADATA) != root:
        log.info("%s: replacing a store of another schema", place.location)
        place.remove([CASE_TABLE])  # first, so that it is no store from here on
        place.remove(names - {ROOT_METADATA})
    if ROOT_METADATA not in names or place.read(ROOT_METADATA) != root:
        place.write(ROOT_METADATA, root)
    try:
        return read_table(place)
    except StoreError:
        return None


def _update_store(
    conversion: ConversionPlan,
    place: StoreBackend,
    *,
    before: CaseTable | None,
    build: Builder,
    commit: Commit,
) -> None:
    digests = digest_files(conversion.bids, conversion.files, place=place)
    there = _load_finished_shards(conversion, place, before)
    shards = plan_shards(conversion, digests, there=there)
    missing = [shard for shard in shards if shard.name not in there]
    if missing:
        _build(conversion, missing, build)
        there = _load_finished_shards(conversion, place, before)
    table = _case_table(conversion, shards, place=place, records=there, before=before)
    content = encode_table(table)
    if before is not None and content == place.read(CASE_TABLE):
        log.info("%s is up to date: settings and files are unchanged", place.location)
    else:
        commit(content)
    _remove_stale_shards(place, table)


def _load_finished_shards(
    conversion: ConversionPlan, place: StoreBackend, table: CaseTable | None
) -> dict[str, ShardRecord]:
    """The shards that are there and whole: first those of the store as it is, then all others."""
    found = load_complete_shards(place, place.list_files(), spec=conversion.spec)
    named = {} if table is None else table.shards
    intact = {
        name: found[name]
        for name, digest in named.items()
        if name in found and sha256(place.read(shard_record_path(name))) == digest
    }
    return intact | {name: record for name, record in found.items() if name not in named}


def _build(conversion: ConversionPlan, shards: Sequence[Shard], build: Builder) -> None:
    """Make shards, and tell how far it got."""
    builds = [
        ShardTask(shard, conversion.path, conversion.bids, conversion.spec, conversion.settings)
        for shard in shards
    ]
    total = sum(len(shard.members) for shard in shards)
    log.info("converting %d of %d subjects", total, len(conversion.subjects))
    started = reported = time.monotonic()
    done = 0
    for subjects in build(builds):
        done += subjects
        now = time.monotonic()
        if now - reported > _REPORT_EVERY or done == total:
            reported = now
            rate = done / (now - started)
            left = (total - done) / rate
            log.info("%d of %d subjects, %.1f/s, %.0f s left", done, total, rate, left)


def _case_table(
    conversion: ConversionPlan,
    shards: Sequence[Shard],
    *,
    place: StoreBackend,
    records: Mapping[str, ShardRecord],
    before: CaseTable | None,
) -> CaseTable:
    lost = [shard.name for shard in shards if shard.name not in records]
    if lost:
        raise StorageError(
            f"{place.location}: expected the shards that were just made, got none of {lost}; is "
            "another conversion writing there? Run the same command again."
        )
    digests = {shard.name: sha256(place.read(shard_record_path(shard.name))) for shard in shards}
    table = CaseTable(
        spec=conversion.spec,
        inputs=inputs_digest(shards),
        bids=str(conversion.bids),
        seed=conversion.seed,
        split_fractions=conversion.settings.split_fractions,
        shards=digests,
        cases=(),
        excluded=(),
    )
    return build_case_table(
        table, {name: records[name] for name in digests}, settled=previous_splits(table, before)
    )


def _remove_stale_shards(place: StoreBackend, table: CaseTable) -> None:
    """Write the refusals for people, and remove the shards that do not count and torn files."""
    refusals = exclusions_tsv(table.excluded)
    names = place.list_files()
    if REFUSED_TABLE not in names or place.read(REFUSED_TABLE) != refusals:
        place.write(REFUSED_TABLE, refusals)
    counting = {shard_record_path(shard) for shard in table.shards}
    counting |= {file for shard in table.shards for file in shard_paths(shard, table.spec.slab)}
    place.remove(
        name
        for name in names
        if name.endswith(PARTIAL_SUFFIX) or (name.startswith(f"{SHARDS}/") and name not in counting)
    )
