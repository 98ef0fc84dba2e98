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

from storage.backends.backend import Place
from storage.errors import Refusal
from storage.layout import (
    SHARDS,
    StoreSpec,
    array_specs,
    record_file,
    root_attributes,
    shard_attributes,
    shard_files,
)
from storage.preprocess.prepare import Facts
from storage.store.case_table import Row, decode_fields, encode_fields

# Chosen by tests/benchmarks/codecs.py; the table is in README.md. The checksum is of what the disk
# holds, so that no flipped bit comes through the decompressor unnoticed.
CODECS = (ZstdCodec(level=1), Crc32cCodec())

Blocks = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of a subject: the facts of a case, or why it is none.

    `inputs` is the digest of all that it was made from, `sources` the sha256 of its files by their
    path in the BIDS folder.
    """

    subject: str
    inputs: str
    sources: Mapping[str, str]
    result: Facts | Refusal


@dataclass(frozen=True)
class Record:
    """What a shard holds: `outcomes` in order, `files` of its arrays with the sha256 of each."""

    outcomes: tuple[Outcome, ...]
    files: Mapping[str, str]

    def rows(self, shard: str) -> Iterator[tuple[Outcome, Row]]:
        """The outcomes that are cases, with their rows in the shard of that name."""
        cases = (outcome for outcome in self.outcomes if isinstance(outcome.result, Facts))
        for place, outcome in enumerate(cases):
            yield outcome, Row(shard, place)


def write_shard(
    place: Place, name: str, *, outcomes: Sequence[Outcome], blocks: Blocks, spec: StoreSpec
) -> None:
    """Put a shard there, its record last; `blocks` are the arrays of its cases."""
    files = _encode_arrays(blocks, spec) if len(blocks["present"]) else {}
    for file, content in files.items():
        place.write(f"{SHARDS}/{name}/{file}", content)
    digests = {f"{SHARDS}/{name}/{file}": sha256(content) for file, content in files.items()}
    place.write(record_file(name), _encode_record(Record(tuple(outcomes), digests)))


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


def read_finished(place: Place, names: set[str], *, spec: StoreSpec) -> dict[str, Record]:
    """The records of all shards that are whole, by name; `names` are the files that are there."""
    found: dict[str, Record] = {}
    for name in sorted(names):
        folder, _, file = name.partition("/")
        shard, dot, suffix = file.partition(".")
        if (folder, dot + suffix) != (SHARDS, ".json"):
            continue
        try:
            record = decode_record(place.read(name))
        except (KeyError, TypeError, ValueError):
            continue
        if not record.files or names.issuperset(shard_files(shard, spec.slab)):
            found[shard] = record
    return found


def _encode_record(record: Record) -> bytes:
    outcomes = ",\n".join(
        json.dumps(_encode_outcome(outcome), allow_nan=False) for outcome in record.outcomes
    )
    return f'{{"files": {json.dumps(record.files)}, "outcomes": [\n{outcomes}]}}\n'.encode()


def _encode_outcome(outcome: Outcome) -> dict[str, Any]:
    result = outcome.result
    kind, fields = (
        ("facts", encode_fields(result))
        if isinstance(result, Facts)
        else ("refusal", asdict(result))
    )
    return {
        "subject": outcome.subject,
        "inputs": outcome.inputs,
        "sources": outcome.sources,
        kind: fields,
    }


def decode_record(content: bytes) -> Record:
    """A shard's record. Raises KeyError, TypeError or ValueError on other content."""
    record = json.loads(content)
    return Record(tuple(map(_decode_outcome, record["outcomes"])), record["files"])


def _decode_outcome(fields: dict[str, Any]) -> Outcome:
    result = (
        Facts(**decode_fields(fields["facts"]))
        if "facts" in fields
        else Refusal(**fields["refusal"])
    )
    return Outcome(fields["subject"], fields["inputs"], fields["sources"], result)


def sha256(content: bytes) -> str:
    """The digest that names a content."""
    return hashlib.sha256(content).hexdigest()


def empty_blocks(rows: int, spec: StoreSpec) -> dict[str, npt.NDArray[Any]]:
    """Arrays of that many cases, to be filled."""
    specs = array_specs(spec.slab)
    return {name: np.zeros((rows, *array.shape), array.dtype) for name, array in specs.items()}
