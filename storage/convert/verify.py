"""Whether a store and the files it came from still are as they were recorded, byte for byte."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.backends.backend import StoreBackend
from storage.backends.local import open_backend
from storage.convert.build_case_table import build_case_table, previous_splits
from storage.convert.file_digests import UNREADABLE_DIGEST, digest_file
from storage.errors import StorageError
from storage.layout import CASE_TABLE, shard_record_path
from storage.store.shards import ShardRecord, decode_record, sha256
from storage.store.store import Store

_THREADS = 8
_ABSENT = "nothing that can be read"


def verify(store: Store, bids: Path) -> Iterator[str]:
    """Reread every digest; a sentence for each file that is not as recorded.

    The case table names the digests of its shards' records, these name those of the arrays' files
    and of the sources below `bids`, and the table is compared with the one that they make.
    """
    place = open_backend(store.path)
    records: dict[str, ShardRecord] = {}
    for shard, digest in store.table.shards.items():
        name = shard_record_path(shard)
        content = _content(place, name)
        if content is not None and sha256(content) == digest:
            records[shard] = decode_record(content)
        else:
            yield _mismatch_message(f"{place.location}/{name}", digest, _sha256(content))
    yield from _verify_arrays(place, records)
    yield from _verify_sources(bids, records)
    if len(records) == len(store.table.shards):
        made = build_case_table(
            store.table, records, settled=previous_splits(store.table, store.table)
        )
        if made != store.table:
            yield (
                f"{place.location}/{CASE_TABLE}: expected what its shards' records say, got "
                "something else; remove it and convert again."
            )


def _verify_arrays(place: StoreBackend, records: Mapping[str, ShardRecord]) -> Iterator[str]:
    expected = {file: sha for record in records.values() for file, sha in record.files.items()}

    def found(name: str) -> str | None:
        return _sha256(_content(place, name))

    with ThreadPoolExecutor(_THREADS) as threads:
        for (name, digest), got in zip(expected.items(), threads.map(found, expected), strict=True):
            if got != digest:
                yield _mismatch_message(f"{place.location}/{name}", digest, got)


def _verify_sources(bids: Path, records: Mapping[str, ShardRecord]) -> Iterator[str]:
    expected = {
        path: (outcome.subject, digest)
        for record in records.values()
        for outcome in record.outcomes
        for path, digest in outcome.sources.items()
        if digest != UNREADABLE_DIGEST
    }

    def found(path: str) -> str | None:
        try:
            return digest_file(bids / path)
        except OSError:
            return None

    with ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(found, expected)
        for (path, (subject, digest)), got in zip(expected.items(), digests, strict=True):
            if got != digest:
                yield f"{subject}: {_mismatch_message(str(bids / path), digest, got)}"


def _content(place: StoreBackend, name: str) -> bytes | None:
    try:
        return place.read(name)
    except (OSError, StorageError):
        return None


def _sha256(content: bytes | None) -> str | None:
    return None if content is None else sha256(content)


def _mismatch_message(file: str, expected: str, got: str | None) -> str:
    return f"{file}: expected sha256 {expected[:12]}, got {got[:12] if got else _ABSENT}."
