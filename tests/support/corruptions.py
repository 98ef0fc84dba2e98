"""Corrupt one file or one subject of a trial on disk."""

import gzip
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from tests.support import bids

Array = bids.Array
Harm = Callable[[Path, str], Any]  # corrupts a subject (by name) of the trial at a root
GEOMETRY = bids.Geometry(tilt=0)
NOBODY = 65534  # a user id

# Byte offsets of NIfTI-1 header fields.
DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SLOPE, UNITS, GLMIN = 40, 70, 72, 76, 108, 112, 123, 144
QFORM, SFORM, QUATERNION, QOFFSET, SROW, MAGIC, EXTENDER = 252, 254, 256, 268, 280, 344, 348


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Run the block without root's permissions; other users keep theirs."""
    user = os.geteuid()
    if user == 0:
        folder.chmod(0o755)
        # pytest makes its temporary folders private, one more of them for each of its processes.
        for parent in folder.parents:
            if parent.stat().st_mode & 0o777 == 0o700:
                parent.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def at(session: str, channel: str, change: Callable[[Path], Any]) -> Harm:
    """Return a harm that changes one file of the subject."""
    return lambda root, name: change(bids.path_of(root, name, session, channel))


def flair(change: Callable[[Path], Any], session: str = "w048") -> Harm:
    """Return a harm that changes a FLAIR of the subject."""
    return at(session, "flair", change)


def patch(offset: int, form: str, *values: Any) -> Callable[[Path], None]:
    """Return a change that overwrites header bytes at `offset`."""

    def change(path: Path) -> None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(f"<{form}", raw, offset, *values)
        path.write_bytes(gzip.compress(bytes(raw)))

    return change


def voxels(change: Callable[[Array], Any]) -> Callable[[Path], None]:
    """Return a change of the voxels of a file."""
    return lambda path: bids.alter(path, lambda data: np.asarray(change(data)))


def put(value: float) -> Callable[[Path], None]:
    """Return a change that sets one voxel, as float32."""

    def change(data: Array) -> Array:
        data = data.astype(np.float32)
        data[3, 4, 5] = value
        return data

    return voxels(change)


def labelled(ids: Iterable[int]) -> Callable[[Path], None]:
    """Return a change of a label map to these ids in turn."""
    return voxels(lambda data: np.resize(np.array([*ids], np.int16), data.shape))


def with_affine(change: Callable[[Array], Array]) -> Callable[[Path], None]:
    """Return a change that writes another affine with the same voxels."""

    def rewrite(path: Path) -> None:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), change(image.affine)), path)

    return rewrite


def rotate_by_35_degrees(path: Path) -> None:
    a = np.radians(35)
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    affine[:3, :3] *= (2, 2, 3)
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine), path)


def sheared(affine: Array) -> Array:
    affine[:3, 1] += 0.1 * affine[:3, 0]
    return affine


def as_type(dtype: Any) -> Callable[[Path], None]:
    """Return a change that writes zeros of another data type."""

    def change(path: Path) -> None:
        image = nib.load(path)
        data = np.zeros(image.shape, dtype)
        nib.save(nib.Nifti1Image(data, image.affine), path)

    return change


def content(transform: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a change of the raw bytes of a file."""
    return lambda path: path.write_bytes(transform(path.read_bytes()))  # type: ignore[return-value]


def bad_checksum(raw: bytes) -> bytes:
    return raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]


def unpacked(transform: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a change that writes the transformed content without gzip."""
    return content(lambda raw: transform(gzip.decompress(raw)))


def repacked(transform: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a change of the content below intact gzip."""
    return content(lambda raw: gzip.compress(transform(gzip.decompress(raw))))


def replaced(create: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return a change that deletes a file and creates something else in its place."""

    def change(path: Path) -> None:
        path.unlink()
        create(path)

    return change


def add_unzipped_copy(path: Path) -> None:
    """Write the same image again without gzip."""
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))


def add_second_run(path: Path) -> None:
    path.with_name(path.name.replace("_FLAIR", "_run-2_FLAIR")).write_bytes(path.read_bytes())


def brain_of(change: Callable[[Array], Array]) -> Callable[[Path, str], None]:
    """Return a harm that writes a brain mask."""

    def write(root: Path, name: str) -> None:
        mask = change(np.zeros(GEOMETRY.shape, np.float32))
        bids.write_volume(bids.path_of(root, name, "w048", "brain_mask"), mask, GEOMETRY)

    return write


def move_brain_mask_off_the_head(root: Path, name: str) -> None:
    def corner(mask: Array) -> Array:
        mask[:2, :2, :2] = 1
        return mask

    brain_of(corner)(root, name)


def rows(change: Callable[[str, str], str]) -> Callable[[Path, str], None]:
    """Return a harm that changes the subject's row of participants.tsv: `change(line, name)`."""

    def rewrite(root: Path, name: str) -> None:
        table = root / "participants.tsv"
        lines = table.read_text().splitlines(keepends=True)
        changed = (change(x, name) if x.startswith(f"{name}\t") else x for x in lines)
        table.write_text("".join(changed))

    return rewrite


def remove_folders(root: Path, name: str) -> None:
    for folder in (root, root / "derivatives" / "lesions", root / "derivatives" / "synthseg"):
        shutil.rmtree(folder / name)


def add_twin_folder(root: Path, name: str) -> None:
    (root / f"sub-{name[4]}_{name[5:]}").mkdir()


def everywhere(value: float) -> Callable[[Array], Array]:
    return lambda data: np.full_like(data, value)


def stacked(data: Array) -> Array:
    return np.stack([data, data], axis=-1)
