"""Read shards from their local files: the bits and errors of zarr-python, with counted reads."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from numcodecs import zstd
from numcodecs.checksum32 import CRC32C
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    ZstdCodec,
)
from zarr.storage import LocalStore

from storage import StoreError
from storage.layout import ARRAYS, StoreSpec
from storage.store.array_reader import ShardArray, ShardedArray, open_arrays, read_rows
from storage.store.case_table import CaseTable
from storage.store.shard_file import ShardFile, open_shard_file
from storage.store.shards import allocate_arrays
from storage.store.zarr_shard import open_zarr_shard
from tests.support.store import SHARD, noise, write_small_store

CASES = 3
FOLDER = f"shards/{SHARD}"
Selection = tuple[list[int], list[int] | None]
SELECTIONS: list[Selection] = [([0, 1, 2], None), ([2, 0], [1]), ([1, 1], [2, 0]), ([1], [0, 1, 2])]


def bits(cases: int, spec: StoreSpec) -> dict[str, npt.NDArray[Any]]:
    """Return arrays of all bit patterns: NaN, infinity, negative zero and negative labels too."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 2, block.shape).astype(bool)
        if block.dtype == bool
        else np.frombuffer(rng.bytes(block.nbytes), block.dtype).reshape(block.shape)
        for name, block in allocate_arrays(cases, spec).items()
    }


def zeros(cases: int, spec: StoreSpec) -> dict[str, npt.NDArray[Any]]:
    return allocate_arrays(cases, spec)


def values_file(path: Path, name: str) -> Path:
    """Return the only file with chunks of an array."""
    (file,) = (each for each in (path / FOLDER / name / "c").rglob("0") if each.is_file())
    return file


def through(shard: ShardArray, selection: Selection) -> npt.NDArray[Any]:
    """Read a selection of positions and sessions."""
    positions, sessions = selection
    values = np.full((len(positions), *shard.row_shape(sessions)), 1, shard.dtype)
    shard.read_into(list(values), positions, sessions)
    return values


@pytest.mark.parametrize("content", [bits, noise, zeros])
# One slice, masks whose last byte is not full, and chunks above 64 KiB have headers of their own.
@pytest.mark.parametrize("slab", [(1, 3, 5), (5, 12, 13), (15, 64, 56)])
def test_every_array_has_the_bits_that_zarr_python_reads(
    tmp_path: Path,
    slab: tuple[int, int, int],
    content: Callable[[int, StoreSpec], dict[str, npt.NDArray[Any]]],
) -> None:
    table = write_small_store(tmp_path, slab, content)
    written = content(CASES, table.spec)
    for name in ARRAYS:
        array = f"{FOLDER}/{name}"
        direct = open_shard_file(tmp_path, array)
        zarr_python = open_zarr_shard(LocalStore(tmp_path, read_only=True), array)
        assert isinstance(direct, ShardFile), name
        for selection in SELECTIONS:
            values, expected = through(direct, selection), through(zarr_python, selection)
            assert values.dtype == expected.dtype == written[name].dtype
            assert values.shape == expected.shape
            assert values.tobytes() == expected.tobytes()
        whole = through(direct, ([0, 1, 2], None))
        assert whole.tobytes() == written[name].tobytes()


def test_a_local_store_is_read_directly(tmp_path: Path) -> None:
    write_small_store(tmp_path)
    for array in open_arrays(tmp_path).values():
        assert isinstance(array.of_shard(SHARD), ShardFile)


ONE_CASE = {"chunks": (1, 3, 5, 12, 13), "compressors": (ZstdCodec(level=1), Crc32cCodec())}
PER_SLICE = {"chunks": (1, 1, 1, 12, 13), "compressors": (ZstdCodec(level=1), Crc32cCodec())}
OTHERS: dict[str, dict[str, Any]] = {
    "without checksum": {"compressors": (ZstdCodec(level=1),)},
    "another order": {"compressors": (Crc32cCodec(), ZstdCodec(level=1))},
    "gzip": {"compressors": (GzipCodec(), Crc32cCodec())},
    "blosc": {"compressors": (BloscCodec(), Crc32cCodec())},
    "chunks of slices": PER_SLICE,
    "no shards": {"shards": None},
    "several shards": {"shards": (1, 3, 5, 12, 13)},
    "index first": {
        "shards": None,
        "compressors": None,
        "chunks": (3, 3, 5, 12, 13),
        "serializer": ShardingCodec(
            chunk_shape=(1, 1, 5, 12, 13),
            codecs=[BytesCodec(), ZstdCodec(level=1), Crc32cCodec()],
            index_location="start",
        ),
    },
    "big-endian": {"serializer": BytesCodec(endian="big")},
}


def rewrite(path: Path, values: npt.NDArray[Any], **options: Any) -> None:
    """Write the array flair of a store again, with other options of Zarr."""
    usual = {
        "chunks": (1, 1, 5, 12, 13),
        "shards": values.shape,
        "compressors": (ZstdCodec(level=1), Crc32cCodec()),
        "dimension_names": ("case", "session", "s", "h", "w"),
        "config": {"write_empty_chunks": True},
    }
    shutil.rmtree(path / FOLDER / "flair")
    group = zarr.open_group(path / FOLDER, mode="r+")
    group.create_array(
        "flair", shape=values.shape, dtype=values.dtype, fill_value=0, **usual | options
    )[:] = values


@pytest.mark.parametrize("kind", OTHERS)
def test_another_layout_is_left_to_zarr_python(tmp_path: Path, kind: str) -> None:
    table = write_small_store(tmp_path)
    flair = noise(CASES, table.spec)["flair"]
    rewrite(tmp_path, flair, **OTHERS[kind])
    assert open_shard_file(tmp_path, f"{FOLDER}/flair") is None
    array = open_arrays(tmp_path)["flair"]
    rows = [table.cases[position].row for position in (2, 0)]
    np.testing.assert_array_equal(read_rows(array, rows, sessions=[1]), flair[[2, 0]][:, [1]])


@pytest.mark.parametrize(
    "options",
    [{"compressors": (ZstdCodec(level=5, checksum=True), Crc32cCodec())}, ONE_CASE],
    ids=["another level", "one chunk a case"],
)
def test_levels_and_chunks_of_whole_cases_are_read_directly(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    table = write_small_store(tmp_path)
    flair = noise(CASES, table.spec)["flair"]
    rewrite(tmp_path, flair, **options)
    shard = open_shard_file(tmp_path, f"{FOLDER}/flair")
    assert shard is not None
    for positions, sessions in SELECTIONS:
        expected = flair[positions] if sessions is None else flair[positions][:, sessions]
        np.testing.assert_array_equal(through(shard, (positions, sessions)), expected)


def outcomes(array: ShardedArray, table: CaseTable) -> list[bytes | str]:
    """Return the content of each case, or the beginning of the error that reading it raises."""
    results: list[bytes | str] = []
    for case in table.cases:
        try:
            results.append(read_rows(array, [case.row]).tobytes())
        except StoreError as error:
            results.append(str(error).partition(", got ")[0])
    return results


def both_outcomes(
    path: Path, name: str, table: CaseTable, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[bytes | str], list[bytes | str]]:
    """Return the outcomes of reading an array directly and with zarr-python."""
    direct = outcomes(open_arrays(path)[name], table)
    with monkeypatch.context() as patch:
        patch.setattr("storage.store.array_reader.open_shard_file", lambda *_: None)
        return direct, outcomes(open_arrays(path)[name], table)


@pytest.mark.parametrize("name", ARRAYS)
def test_damage_spoils_the_cases_that_it_spoils_for_zarr_python(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit, a file cut short, a file that goes on, and an empty file."""
    table = write_small_store(tmp_path)
    file, rng = values_file(tmp_path, name), np.random.default_rng(0)
    original = file.read_bytes()
    damaged = [original[: len(original) * part // 7] for part in range(7)]
    damaged += [original[:-1], original + b"\0", original + original[-20:]]
    for position in rng.integers(0, len(original), 20):
        corrupted = bytearray(original)
        corrupted[position] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(corrupted))
    n_errors = 0
    for content in damaged:
        file.write_bytes(content)
        direct, zarr_python = both_outcomes(tmp_path, name, table, monkeypatch)
        assert direct == zarr_python
        n_errors += sum(isinstance(outcome, str) for outcome in direct)
    assert n_errors >= len(damaged)
    file.write_bytes(original)
    assert all(isinstance(each, bytes) for each in outcomes(open_arrays(tmp_path)[name], table))


@pytest.mark.parametrize("missing", ["file", "metadata", "folder"])
def test_missing_files_are_named_as_zarr_python_finds_them_missing(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_small_store(tmp_path)
    if missing == "folder":
        shutil.rmtree(tmp_path / FOLDER)
    else:
        name = "zarr.json" if missing == "metadata" else "c/0/0/0/0/0"
        (tmp_path / FOLDER / "flair" / name).unlink()
    direct, zarr_python = both_outcomes(tmp_path, "flair", table, monkeypatch)
    assert direct == zarr_python
    assert all(isinstance(outcome, str) for outcome in direct)
    with pytest.raises(StoreError, match=rf"got no file {FOLDER}/flair/(zarr.json|c/0/0/0/0/0);"):
        read_rows(open_arrays(tmp_path)["flair"], [table.cases[0].row])


def test_a_shard_that_was_removed_after_a_read_is_an_error(tmp_path: Path) -> None:
    table = write_small_store(tmp_path)
    array, row = open_arrays(tmp_path)["masks"], table.cases[1].row
    assert read_rows(array, [row]).any()
    shutil.rmtree(tmp_path / FOLDER)
    with pytest.raises(StoreError, match=r"got no file .* if the store was converted again mean"):
        read_rows(array, [row])


@pytest.mark.parametrize("content", ["{", "{}", "[]", "null"])
def test_damaged_metadata_is_an_error(tmp_path: Path, content: str) -> None:
    table = write_small_store(tmp_path)
    (tmp_path / FOLDER / "flair" / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=r"shard/flair: expected sub-00 as it was written, got "):
        read_rows(open_arrays(tmp_path)["flair"], [table.cases[0].row])


def replace_chunks(file: Path, body: bytes, entry: tuple[int, int], chunks: int) -> None:
    """Write a file of one chunk, for which all entries of an index with a checksum stand."""
    index = np.tile(np.array(entry, "<u8"), chunks)
    file.write_bytes(body + CRC32C(location="end").encode(index.tobytes()).tobytes())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((0, 2**63), "beyond the end of the file"),
        ((1, 2**64 - 2), "beyond the end of the file"),
        ((2**63, 2**63), "beyond the end of the file"),
        ((0, 0), "too short"),
        ((0, 3), "too short"),
    ],
)
def test_an_index_of_impossible_places_is_an_error(
    tmp_path: Path, entry: tuple[int, int], message: str
) -> None:
    table = write_small_store(tmp_path)
    replace_chunks(values_file(tmp_path, "parcellation"), bytes(100), entry, CASES)
    with pytest.raises(StoreError, match=message):
        read_rows(open_arrays(tmp_path)["parcellation"], [table.cases[0].row])


@pytest.mark.parametrize("size", [1, 1560 // 2, 1560 - 1, 1560 + 1, 2**17])
def test_a_chunk_of_another_size_is_an_error_and_leaves_no_voxel_unread(
    tmp_path: Path, size: int
) -> None:
    """The checksum holds, so that only the size in the header of the frame tells."""
    table = write_small_store(tmp_path)
    file = values_file(tmp_path, "parcellation")  # 5 x 12 x 13 voxels of two bytes
    for actual in (1560, size):
        frame = CRC32C(location="end").encode(zstd.compress(bytes(actual))).tobytes()
        replace_chunks(file, frame, (0, len(frame)), CASES)
        array = open_arrays(tmp_path)["parcellation"]
        if actual == 1560:
            assert not read_rows(array, [table.cases[0].row]).any()
    with pytest.raises(StoreError, match=rf"got a chunk of {size} bytes instead of 1560"):
        read_rows(array, [table.cases[0].row])


class CountedReads:
    """Files opened and bytes read through `os`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, limit: int | None = None) -> None:
        self.opened: list[str] = []
        self.read: list[int] = []
        os_open, os_pread = os.open, os.pread

        def counted_open(path: Any, *given: Any, **named: Any) -> int:
            self.opened.append(Path(path).name)
            return os_open(path, *given, **named)

        def counted_pread(file: int, length: int, offset: int) -> bytes:
            content = os_pread(file, min(length, limit or length), offset)
            self.read.append(len(content))
            return content

        monkeypatch.setattr(os, "open", counted_open)
        monkeypatch.setattr(os, "pread", counted_pread)

    def clear(self) -> None:
        self.opened.clear()
        self.read.clear()


def chunk_lengths(path: Path, name: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return the bytes of each chunk of an array, from the index at the end of its file."""
    size = 16 * int(np.prod(shape))
    content = values_file(path, name).read_bytes()[-size - 4 : -4]
    return np.frombuffer(content, "<u8").reshape(*shape, 2)[..., 1]


def test_a_read_opens_a_shard_once_and_takes_the_bytes_of_its_chunks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_small_store(tmp_path)
    rows = [case.row for case in table.cases]
    for name in ARRAYS:
        by_session = name in ("flair", "masks")
        shape = (CASES, 3) if by_session else (CASES,)
        lengths = chunk_lengths(tmp_path, name, shape)
        metadata = (tmp_path / FOLDER / name / "zarr.json").stat().st_size
        with monkeypatch.context() as patch:
            counted, array = CountedReads(patch), open_arrays(tmp_path)[name]
            read_rows(array, rows[:1])
            # Once for the life of the array: the metadata and the index with its checksum.
            assert counted.opened == ["zarr.json", "0", "0"]
            assert sum(counted.read) == metadata + 16 * lengths.size + 4 + lengths[0].sum()
            counted.clear()
            read_rows(array, [rows[2], rows[0]])
            assert counted.opened == ["0"]
            assert sorted(counted.read) == sorted(lengths[[2, 0]].ravel().tolist())
            counted.clear()
            read_rows(array, rows, sessions=[1])
            assert counted.opened == ["0"]
            chosen = lengths[:, 1] if by_session else lengths
            assert sorted(counted.read) == sorted(chosen.tolist())


def test_reads_that_return_less_than_asked_for_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_small_store(tmp_path)
    expected = noise(CASES, table.spec)["flair"]
    with monkeypatch.context() as patch:
        counted, array = CountedReads(patch, limit=100), open_arrays(tmp_path)["flair"]
        values = read_rows(array, [case.row for case in table.cases])
    assert max(counted.read) == 100
    np.testing.assert_array_equal(values, expected)
