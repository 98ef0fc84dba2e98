"""Convert a BIDS trial to a store, safely even if the process is killed: the case table is last.

Shards are written one by one. A shard that exists under its name is complete and is kept, so the
same command continues a killed conversion. Readers see the store of the previous case table until
the new one is written. Only then are stale shards removed.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from storage.atomic import PARTIAL_SUFFIX
from storage.backends.backend import Commit, StoreBackend
from storage.backends.open import open_backend
from storage.convert.build_case_table import build_case_table, previous_splits
from storage.convert.build_shard import ShardTask, build_shard
from storage.convert.file_digests import digest_files
from storage.convert.plan import ConversionPlan, Shard, inputs_digest, plan_shards
from storage.digest import sha256_bytes
from storage.errors import StorageError, StoreError
from storage.layout import (
    CASE_TABLE,
    EXCLUDED_TABLE,
    ROOT_METADATA,
    SHARDS,
    shard_paths,
    shard_record_path,
)
from storage.store.case_table import CaseTable, encode_table, exclusions_tsv
from storage.store.lost_lesions import outcome_exclusions
from storage.store.shards import ShardRecord, encode_root, load_complete_shards
from storage.store.store import Store, is_lesioncast_store, open_store, read_table

logger = logging.getLogger(__name__)

_REPORT_INTERVAL_S = 2.0

# Builds shards, here or elsewhere, and yields the number of subjects of each finished shard.
Builder = Callable[[Sequence[ShardTask]], Iterable[int]]


def build_on_ray(tasks: Sequence[ShardTask]) -> Iterable[int]:
    """Build each shard in a task of this process's Ray cluster.

    Ray runs a task again if its worker dies. Raises StorageError if a shard cannot be built.
    """
    # It takes a second, which the conversion of one patient in this process need not wait for.
    import ray
    from ray.exceptions import RayError, RayTaskError

    remote_build = ray.remote(build_shard)
    running = [remote_build.remote(task) for task in tasks]
    while running:
        done, running = ray.wait(running)
        try:
            yield from ray.get(done)
        except RayTaskError as error:
            # Ray wraps the exception of a task; callers handle StorageError only.
            raise (error.cause if isinstance(error.cause, StorageError) else error) from None
        except RayError as error:
            raise StorageError(
                f"{tasks[0].path}: expected running workers, got {error}; run the same command "
                "again: finished shards are kept."
            ) from error


def convert(plan: ConversionPlan, *, build: Builder = build_on_ray) -> Store:
    """Create the store, or update it; unchanged shards are not built again.

    `table.excluded` of the returned store lists the subjects that could not be converted. Raises
    StorageError if no subject could be converted, if another conversion is writing, if a file
    cannot be written, or if the path holds something else. An existing store then stays as it was.
    """
    backend = open_backend(plan.path)
    _check_destination(backend)
    with backend.write_lock() as commit:
        previous = _initialise_store(backend)
        _update_store(plan, backend, previous=previous, build=build, commit=commit)
    return open_store(plan.path)


def _check_destination(backend: StoreBackend) -> None:
    """Require that the destination is empty or holds a store of this project."""
    if not is_lesioncast_store(backend) and any(
        not name.endswith(PARTIAL_SUFFIX) for name in backend.list_files()
    ):
        raise StorageError(
            f"{backend.location}: expected a store or nothing, got something else; "
            "choose another path."
        )


def _initialise_store(backend: StoreBackend) -> CaseTable | None:
    """Write the root metadata and return the existing case table, None if there is none."""
    root = encode_root()
    names = backend.list_files()
    if ROOT_METADATA in names and backend.read(ROOT_METADATA) != root:
        logger.info(
            "conversion.replaces_old_schema: %s was made by another version", backend.location
        )
        backend.remove([CASE_TABLE])  # first: without its table it is no store any more
        backend.remove(names - {ROOT_METADATA})
    if ROOT_METADATA not in names or backend.read(ROOT_METADATA) != root:
        backend.write(ROOT_METADATA, root)
    try:
        return read_table(backend)
    except StoreError:
        return None


def _update_store(
    plan: ConversionPlan,
    backend: StoreBackend,
    *,
    previous: CaseTable | None,
    build: Builder,
    commit: Commit,
) -> None:
    """Build missing shards, write the case table and remove stale shards."""
    digests = digest_files(plan.bids, plan.files, backend=backend)
    existing = _load_finished_shards(plan, backend, previous)
    shards = plan_shards(plan, digests, existing=existing)
    missing = [shard for shard in shards if shard.name not in existing]
    if missing:
        _build_shards(plan, missing, build)
        existing = _load_finished_shards(plan, backend, previous)
    table = _case_table(plan, shards, backend=backend, records=existing, previous=previous)
    content = encode_table(table)
    if previous is not None and content == backend.read(CASE_TABLE):
        logger.info(
            "conversion.up_to_date: settings and files of %s are unchanged", backend.location
        )
    else:
        commit(content)
        logger.info("conversion.finished: %d cases in %s", len(table.cases), backend.location)
    _remove_stale_shards(backend, table)


def _load_finished_shards(
    plan: ConversionPlan, backend: StoreBackend, table: CaseTable | None
) -> dict[str, ShardRecord]:
    """Return the complete shards, those of the current case table first.

    A record that does not match the digest in the table was altered, and its shard is built again.
    """
    complete = load_complete_shards(backend, backend.list_files(), spec=plan.spec)
    current = {} if table is None else table.shards
    intact = {
        name: complete[name]
        for name, digest in current.items()
        if name in complete and sha256_bytes(backend.read(shard_record_path(name))) == digest
    }
    return intact | {name: record for name, record in complete.items() if name not in current}


def _build_shards(plan: ConversionPlan, shards: Sequence[Shard], build: Builder) -> None:
    """Build shards and log the progress."""
    tasks = [ShardTask(shard, plan.path, plan.bids, plan.spec, plan.settings) for shard in shards]
    total = sum(len(shard.members) for shard in shards)
    logger.info("conversion.started: %d of %d subjects to convert", total, len(plan.subjects))
    started = reported = time.monotonic()
    done = 0
    for subjects in build(tasks):
        done += subjects
        now = time.monotonic()
        if now - reported > _REPORT_INTERVAL_S or done == total:
            reported = now
            rate = done / (now - started)
            remaining_s = (total - done) / rate
            progress = f"{done} of {total} subjects, {rate:.1f}/s, {remaining_s:.0f} s left"
            logger.info("conversion.progress: %s", progress)


def _case_table(
    plan: ConversionPlan,
    shards: Sequence[Shard],
    *,
    backend: StoreBackend,
    records: Mapping[str, ShardRecord],
    previous: CaseTable | None,
) -> CaseTable:
    """Return the case table of the planned shards."""
    missing = [shard.name for shard in shards if shard.name not in records]
    if missing:
        raise StorageError(
            f"{backend.location}: expected the shards that were just built, got none of {missing}; "
            "if another conversion is writing here, wait for it and run the same command again."
        )
    digests = {
        shard.name: sha256_bytes(backend.read(shard_record_path(shard.name))) for shard in shards
    }
    table = CaseTable(
        spec=plan.spec,
        inputs=inputs_digest(shards),
        bids=str(plan.bids),
        trial=plan.description,
        settings=plan.settings,
        seed=plan.seed,
        shards=digests,
        cases=(),
        excluded=(),
    )
    return build_case_table(
        table, {name: records[name] for name in digests}, previous=previous_splits(table, previous)
    )


def _remove_stale_shards(backend: StoreBackend, table: CaseTable) -> None:
    """Write the table of exclusions, and remove stale shards and partial files."""
    exclusions = exclusions_tsv((*table.excluded, *outcome_exclusions(table)))
    names = backend.list_files()
    if EXCLUDED_TABLE not in names or backend.read(EXCLUDED_TABLE) != exclusions:
        backend.write(EXCLUDED_TABLE, exclusions)
    current = {shard_record_path(shard) for shard in table.shards}
    current |= {file for shard in table.shards for file in shard_paths(shard, table.spec.slab)}
    backend.remove(
        name
        for name in names
        if name.endswith(PARTIAL_SUFFIX) or (name.startswith(f"{SHARDS}/") and name not in current)
    )
