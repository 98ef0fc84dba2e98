"""A shard: the arrays of some cases, and the record that says what they hold and came from."""

import hashlib
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

# Chosen by tests/benchmarks/data/codecs.py; the table is in README.md. The checksum is of what the disk
# holds, so that no flipped bit comes through the decompressor unnoticed.
CODECS = (ZstdCodec(level=1), Crc32cCodec())

Blocks = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SubjectOutcome:
    """What became of a subject: the facts of a case, or why it is none.

    `inputs` is the digest of all that it was made from, `sources` the sha256 of its files by their
    path in the BIDS folder.
    """

    subject: str
    inputs: str
    sources: Mapping[str, str]
    result: CaseMetadata | Exclusion


@dataclass(frozen=True)
class ShardRecord:
    """What a shard holds: `outcomes` in order, `files` of its arrays with the sha256 of each."""

    outcomes: tuple[SubjectOutcome, ...]
    files: Mapping[str, str]

    def rows(self, shard: str) -> Iterator[tuple[SubjectOutcome, ShardRow]]:
        """The outcomes that are cases, with their rows in the shard of that name."""
        cases = (outcome for outcome in self.outcomes if isinstance(outcome.result, CaseMetadata))
        for place, outcome in enumerate(cases):
            yield outcome, ShardRow(shard, place)


def write_shard(
    place: StoreBackend,
    name: str,
    *,
    outcomes: Sequence[SubjectOutcome],
    blocks: Blocks,
    spec: StoreSpec,
) -> None:
    """Put a shard there, its record last; `blocks` are the arrays of its cases."""
    files = _encode_arrays(blocks, spec) if len(blocks["present"]) else {}
    for file, content in files.items():
        place.write(f"{SHARDS}/{name}/{file}", content)
    digests = {f"{SHARDS}/{name}/{file}": sha256(content) for file, content in files.items()}
    place.write(shard_record_path(name), _encode_record(ShardRecord(tuple(outcomes), digests)))


def encode_root() -> bytes:
    """The metadata of a store's root group, as Zarr has it."""
    return _metadata(root_attributes())["zarr.json"].to_bytes()


def _metadata(attributes: dict[str, Any]) -> dict[str, Buffer]:
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files), attributes=attributes)
    return files


def _encode_arrays(blocks: Blocks, spec: StoreSpec) -> dict[str, bytes]:
    """The files of a shard by name, encoded in memory: Zarr itself never writes to a place."""
    files = _metadata(shard_attributes(spec))
    group = zarr.open_group(MemoryStore(files), mode="r+")
    for name, array in array_specs(spec.slab).items():
        rows = len(blocks[name])
        group.create_array(
            name,
            shape=(rows, *array.shape),
            dtype=array.dtype,
            chunks=(1, *array.chunk),
            shards=(rows, *array.shape),
            compressors=CODECS,
            fill_value=0,
            dimension_names=("case", *array.axes),
            # An empty chunk is written too: what is missing is an error, never zeros.
            config={"write_empty_chunks": True},
        )[:] = blocks[name]
    return {file: content.to_bytes() for file, content in sorted(files.items())}


def load_complete_shards(
    place: StoreBackend, names: set[str], *, spec: StoreSpec
) -> dict[str, ShardRecord]:
    """The records of all shards that are whole, by name; `names` are the files that are there."""
    found: dict[str, ShardRecord] = {}
    for name in sorted(names):
        folder, _, file = name.partition("/")
        shard, dot, suffix = file.partition(".")
        if (folder, dot + suffix) != (SHARDS, ".json"):
            continue
        try:
            record = decode_record(place.read(name))
        except (KeyError, TypeError, ValueError):
            continue
        if not record.files or names.issuperset(shard_paths(shard, spec.slab)):
            found[shard] = record
    return found


def _encode_record(record: ShardRecord) -> bytes:
    outcomes = ",\n".join(
        json.dumps(_encode_outcome(outcome), allow_nan=False) for outcome in record.outcomes
    )
    return f'{{"files": {json.dumps(record.files)}, "outcomes": [\n{outcomes}]}}\n'.encode()


def _encode_outcome(outcome: SubjectOutcome) -> dict[str, Any]:
    result = outcome.result
    kind, fields = (
        ("facts", case_to_json(result))
        if isinstance(result, CaseMetadata)
        else ("refusal", asdict(result))
    )
    return {
        "subject": outcome.subject,
        "inputs": outcome.inputs,
        "sources": outcome.sources,
        kind: fields,
    }


def decode_record(content: bytes) -> ShardRecord:
    """A shard's record. Raises KeyError, TypeError or ValueError on other content."""
    record = json.loads(content)
    return ShardRecord(tuple(map(_decode_outcome, record["outcomes"])), record["files"])


def _decode_outcome(fields: dict[str, Any]) -> SubjectOutcome:
    result = (
        CaseMetadata(**case_from_json(fields["facts"]))
        if "facts" in fields
        else Exclusion(**fields["refusal"])
    )
    return SubjectOutcome(fields["subject"], fields["inputs"], fields["sources"], result)


def sha256(content: bytes) -> str:
    """The digest that names a content."""
    return hashlib.sha256(content).hexdigest()


def allocate_arrays(rows: int, spec: StoreSpec) -> dict[str, npt.NDArray[Any]]:
    """Arrays of that many cases, to be filled."""
    specs = array_specs(spec.slab)
    return {name: np.zeros((rows, *array.shape), array.dtype) for name, array in specs.items()}
