"""Verify that a store and its source files are unchanged, byte for byte."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.backends.backend import StoreBackend
from storage.backends.open import open_backend
from storage.convert.build_case_table import build_case_table, previous_splits
from storage.convert.file_digests import UNREADABLE_DIGEST
from storage.digest import sha256_bytes, sha256_file
from storage.errors import StorageError
from storage.layout import CASE_TABLE, shard_record_path
from storage.store.shards import ShardRecord, decode_record
from storage.store.store import Store
from storage.text_files import printable_name

_THREADS = 8
_UNREADABLE = "no readable file"


def verify(store: Store, bids: Path) -> Iterator[str]:
    """Recompute every digest and yield a sentence for each file that differs.

    The case table holds the digests of the shards' records. The records hold those of the arrays'
    files and of the source files below `bids`. Finally the table is compared with the one that
    follows from the records.
    """
    backend = open_backend(store.path)
    records: dict[str, ShardRecord] = {}
    for shard, digest in store.table.shards.items():
        name = shard_record_path(shard)
        content = _content(backend, name)
        if content is not None and sha256_bytes(content) == digest:
            records[shard] = decode_record(content)
        else:
            yield _mismatch_message(f"{backend.location}/{name}", digest, _digest(content))
    yield from _verify_arrays(backend, records)
    yield from _verify_sources(bids, records)
    if len(records) == len(store.table.shards):
        rebuilt = build_case_table(
            store.table, records, previous=previous_splits(store.table, store.table)
        )
        if rebuilt != store.table:
            yield (
                f"{backend.location}/{CASE_TABLE}: expected the table of its shards, got "
                "another one; remove it and convert again."
            )


def _verify_arrays(backend: StoreBackend, records: Mapping[str, ShardRecord]) -> Iterator[str]:
    expected = {file: sha for record in records.values() for file, sha in record.files.items()}

    def digest_of(name: str) -> str | None:
        return _digest(_content(backend, name))

    with ThreadPoolExecutor(_THREADS) as threads:
        for (name, digest), actual in zip(
            expected.items(), threads.map(digest_of, expected), strict=True
        ):
            if actual != digest:
                yield _mismatch_message(f"{backend.location}/{name}", digest, actual)


def _verify_sources(bids: Path, records: Mapping[str, ShardRecord]) -> Iterator[str]:
    expected = {
        path: (outcome.subject, digest)
        for record in records.values()
        for outcome in record.outcomes
        for path, digest in outcome.sources.items()
        if digest != UNREADABLE_DIGEST
    }

    def digest_of(path: str) -> str | None:
        try:
            return sha256_file(bids / path)
        except OSError:
            return None

    with ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(digest_of, expected)
        for (path, (subject, digest)), actual in zip(expected.items(), digests, strict=True):
            if actual != digest:
                name = printable_name(str(bids / path))
                yield f"{subject}: {_mismatch_message(name, digest, actual)}"


def _content(backend: StoreBackend, name: str) -> bytes | None:
    """Return the content of a file of the store, None if it cannot be read."""
    try:
        return backend.read(name)
    except (OSError, StorageError):
        return None


def _digest(content: bytes | None) -> str | None:
    return None if content is None else sha256_bytes(content)


def _mismatch_message(file: str, expected: str, got: str | None) -> str:
    return f"{file}: expected sha256 {expected[:12]}, got {got[:12] if got else _UNREADABLE}."
