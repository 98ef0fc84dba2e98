"""Write and read a shard: the arrays of some cases, and the record of what they hold."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from storage.backends.backend import StoreBackend
from storage.digest import sha256_bytes
from storage.errors import Exclusion
from storage.layout import (
    SHARDS,
    StoreSpec,
    array_specs,
    root_attributes,
    shard_attributes,
    shard_paths,
    shard_record_path,
)
from storage.preprocess.prepare import CaseMetadata
from storage.store.case_table import ShardRow, case_from_json, case_to_json

# Chosen by tests/benchmarks/data/codecs.py. The checksum comes last, so it covers the compressed
# bytes on disk: a flipped bit is detected before it reaches the decompressor.
CODECS = (ZstdCodec(level=1), Crc32cCodec())

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SubjectOutcome:
    """Result of one subject: the metadata of its case, or why it is excluded."""

    subject: str
    #: Digest of everything on which the result depends.
    inputs: str
    #: SHA-256 of its files by their path in the BIDS folder.
    sources: Mapping[str, str]
    result: CaseMetadata | Exclusion


@dataclass(frozen=True)
class ShardRecord:
    """Content of a shard."""

    #: Results of its subjects, in order; those that are cases have a row.
    outcomes: tuple[SubjectOutcome, ...]
    #: SHA-256 of each file of its arrays.
    files: Mapping[str, str]

    def rows(self, shard: str) -> Iterator[tuple[SubjectOutcome, ShardRow]]:
        """Yield the outcomes that are cases, with their rows in the shard of that name."""
        cases = (outcome for outcome in self.outcomes if isinstance(outcome.result, CaseMetadata))
        for position, outcome in enumerate(cases):
            yield outcome, ShardRow(shard, position)


def write_shard(
    backend: StoreBackend,
    name: str,
    *,
    outcomes: Sequence[SubjectOutcome],
    arrays: Arrays,
    spec: StoreSpec,
) -> None:
    """Write a shard with the `arrays` of its cases.

    The record is written last: a shard without it is incomplete.
    """
    files = _encode_arrays(arrays, spec) if len(arrays["present"]) else {}
    for file, content in files.items():
        backend.write(f"{SHARDS}/{name}/{file}", content)
    digests = {f"{SHARDS}/{name}/{file}": sha256_bytes(content) for file, content in files.items()}
    backend.write(shard_record_path(name), _encode_record(ShardRecord(tuple(outcomes), digests)))


def encode_root() -> bytes:
    """Return the Zarr metadata of a store's root group."""
    return _metadata(root_attributes())["zarr.json"].to_bytes()


def _metadata(attributes: dict[str, Any]) -> dict[str, Buffer]:
    """Return the metadata files of a Zarr group."""
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), attributes=attributes)
    return files


def _encode_arrays(arrays: Arrays, spec: StoreSpec) -> dict[str, bytes]:
    """Return the files of a shard by name.

    They are encoded in memory and written by the backend, because Zarr does not write atomically.
    """
    files = _metadata(shard_attributes(spec))
    group = zarr.open_group(MemoryStore(files), mode="r+")
    for name, array in array_specs(spec.slab).items():
        rows = len(arrays[name])
        group.create_array(
            name,
            shape=(rows, *array.shape),
            dtype=array.dtype,
            chunks=(1, *array.chunk),
            shards=(rows, *array.shape),
            compressors=CODECS,
            fill_value=0,
            dimension_names=("case", *array.axes),
            # Zarr would omit chunks of zeros and read missing chunks as zeros. Here every chunk is
            # written, so that a missing file is an error.
            config={"write_empty_chunks": True},
        )[:] = arrays[name]
    return {file: content.to_bytes() for file, content in sorted(files.items())}


def load_complete_shards(
    backend: StoreBackend, names: set[str], *, spec: StoreSpec
) -> dict[str, ShardRecord]:
    """Return the records of all complete shards by name; `names` are the files of the store."""
    complete: dict[str, ShardRecord] = {}
    for name in sorted(names):
        folder, _, file = name.partition("/")
        shard, dot, suffix = file.partition(".")
        if (folder, dot + suffix) != (SHARDS, ".json"):
            continue
        try:
            record = decode_record(backend.read(name))
        except (KeyError, TypeError, ValueError):
            continue  # damaged: the shard is built again
        if not record.files or names.issuperset(shard_paths(shard, spec.slab)):
            complete[shard] = record
    return complete


def _encode_record(record: ShardRecord) -> bytes:
    outcomes = ",\n".join(
        json.dumps(_encode_outcome(outcome), allow_nan=False) for outcome in record.outcomes
    )
    return f'{{"files": {json.dumps(record.files)}, "outcomes": [\n{outcomes}]}}\n'.encode()


def _encode_outcome(outcome: SubjectOutcome) -> dict[str, Any]:
    result = outcome.result
    kind, fields = (
        ("case", case_to_json(result))
        if isinstance(result, CaseMetadata)
        else ("exclusion", asdict(result))
    )
    return {
        "subject": outcome.subject,
        "inputs": outcome.inputs,
        "sources": outcome.sources,
        kind: fields,
    }


def decode_record(content: bytes) -> ShardRecord:
    """Parse a shard's record. Raises KeyError, TypeError or ValueError for other content."""
    record = json.loads(content)
    return ShardRecord(tuple(map(_decode_outcome, record["outcomes"])), record["files"])


def _decode_outcome(fields: dict[str, Any]) -> SubjectOutcome:
    result = (
        CaseMetadata(**case_from_json(fields["case"]))
        if "case" in fields
        else Exclusion(**fields["exclusion"])
    )
    return SubjectOutcome(fields["subject"], fields["inputs"], fields["sources"], result)


def allocate_arrays(rows: int, spec: StoreSpec) -> dict[str, npt.NDArray[Any]]:
    """Return arrays of zeros for `rows` cases."""
    specs = array_specs(spec.slab)
    return {name: np.zeros((rows, *array.shape), array.dtype) for name, array in specs.items()}
