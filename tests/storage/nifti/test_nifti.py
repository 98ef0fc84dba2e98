"""Read NIfTI files as scanners and tools write them, with voxels at known positions."""

import itertools
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform

from storage import CaseError, to_source_grid
from storage.nifti.io import Volume, open_nifti, read_volume
from storage.preprocess.grid import place_slab, to_slab
from storage.preprocess.prepare import CaseArrays, CaseMetadata, preprocess_subject
from storage.settings import StoreSettings
from storage.trial.dataset import SourceFile, scan_trial
from tests.support import bids
from tests.support.corruptions import QUATERNION, UNITS

SETTINGS = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False)
CODES = [
    "".join(signed)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for signed in itertools.product(*axes)
]
DIRECTIONS = {
    "R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1),
    "I": (0, 0, -1),
}  # fmt: skip
PLAIN = np.array([[2.0, 0, 0, -9], [0, 2, 0, 5], [0, 0, 3, -30], [0, 0, 0, 1]])


def read(path: Path) -> Volume:
    return read_volume(SourceFile("sub-01", "w048", "flair", path))


def save(path: Path, data: Any, affine: Any, *, sform: int = 1, qform: int = 1) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
    image.set_qform(affine, qform)
    image.set_sform(affine if sform else None, sform)
    nib.save(image, path)
    return image


def preprocess(
    root: Path, *, settings: StoreSettings = SETTINGS
) -> tuple[CaseMetadata, CaseArrays]:
    (subject,) = scan_trial(root, settings.layout)
    return preprocess_subject(subject, root, settings=settings, arms=bids.ARMS)


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    bids.write_trial(tmp_path, 1)
    return tmp_path


@pytest.mark.parametrize("code", CODES)
def test_marked_voxel_has_its_anatomical_position_in_every_orientation(
    tmp_path: Path, code: str
) -> None:
    """The body has 14 x 18 x 9 voxels; the mark is voxel (3, 4, 6) from right, back and below."""
    sizes, spacing, mark = (14, 18, 9), (2.0, 2.0, 3.0), (3, 4, 6)
    steps = np.array([DIRECTIONS[letter] for letter in code])  # one a file axis
    world = [int(np.abs(step).argmax()) for step in steps]
    backwards = [step.sum() < 0 for step in steps]
    data = np.zeros([sizes[w] for w in world], np.int16)
    data[
        tuple(
            sizes[w] - 1 - mark[w] if back else mark[w]
            for w, back in zip(world, backwards, strict=True)
        )
    ] = 77
    affine = np.eye(4)
    affine[:3, :3] = (steps * np.array([[spacing[w]] for w in world])).T
    for w, back in zip(world, backwards, strict=True):
        affine[w, 3] = 10.0 + back * (sizes[w] - 1) * spacing[w]
    save(tmp_path / "flair.nii", data, affine)

    volume = read(tmp_path / "flair.nii")
    assert np.argwhere(volume.data == 77).tolist() == [[6, 4, 3]]
    assert volume.data.shape == volume.header.canonical_shape == (9, 18, 14)
    assert volume.spacing == (3.0, 2.0, 2.0)
    np.testing.assert_allclose(volume.affine @ (3, 4, 6, 1), (16, 18, 28, 1))


def rotated(degrees: float, *, shear: float = 0) -> bids.Array:
    """Return `PLAIN` rotated about the left-right axis and sheared by `shear` degrees."""
    a, lean = np.radians(degrees), np.tan(np.radians(shear))
    turn = np.array([[1, lean, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    affine = PLAIN.copy()
    affine[:3, :3] = turn / np.linalg.norm(turn, axis=0) * (2, 2, 3)
    return affine


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (rotated(29.5), None),
        (rotated(-29.5), None),
        (
            rotated(30.5),
            "axes within 30 degrees of the body's, got 30.5; reslice it or raise store.",
        ),
        (rotated(-44), "got 44.0"),
        (rotated(10, shear=1.8), None),
        (rotated(10, shear=2.5), "axes at right angles, got 2.5 degrees off; reslice it"),
    ],
)
def test_oblique_files_are_accepted_up_to_the_limit(
    tmp_path: Path, affine: bids.Array, reason: str | None
) -> None:
    bids.write_participants(tmp_path, {"sub-01": "placebo"})
    for seed, session in enumerate(("w000", "w048")):
        path = bids.path_of(tmp_path, "sub-01", session, "flair")
        path.parent.mkdir(parents=True)
        save(path, bids.head((9, 18, 14), seed).transpose(2, 1, 0), affine)
    if reason is None:
        metadata, _ = preprocess(tmp_path)
        np.testing.assert_allclose(np.array(metadata.grid.slab_affine)[:3, :3], affine[:3, :3])
    else:
        with pytest.raises(CaseError) as caught:
            preprocess(tmp_path)
        assert reason in caught.value.exclusion.reason


def test_obliquity_limit_is_a_setting(tmp_path: Path) -> None:
    bids.write_trial(tmp_path, 1, geometry=bids.Geometry(tilt=18))  # about three axes: 34 degrees
    wide = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=True, max_obliquity=44)
    with pytest.raises(CaseError, match=r"axes within 30 degrees of the body's, got 3\d"):
        preprocess(tmp_path)
    preprocess(tmp_path, settings=wide)


def test_slope_and_intercept_are_applied_to_integers(tmp_path: Path) -> None:
    stored = np.arange(14 * 18 * 9, dtype=np.int16).reshape(14, 18, 9)
    image = nib.Nifti1Image(stored, PLAIN)
    image.header.set_slope_inter(0.25, -3)  # nibabel then writes the numbers as they are
    nib.save(image, tmp_path / "flair.nii.gz")
    volume = read(tmp_path / "flair.nii.gz")
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, (stored * 0.25 - 3).transpose(2, 1, 0))


@pytest.mark.parametrize("tail", [(1,), (1, 1)])
def test_single_frame_is_read_as_a_volume(tmp_path: Path, tail: tuple[int, ...]) -> None:
    data = bids.head((9, 18, 14), 0).transpose(2, 1, 0)
    save(tmp_path / "flair.nii.gz", data.reshape(*data.shape, *tail), PLAIN)
    volume = read(tmp_path / "flair.nii.gz")
    np.testing.assert_array_equal(volume.data, data.transpose(2, 1, 0))
    assert volume.header.shape == (14, 18, 9)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_both_nifti_versions_byte_orders_and_gzip_are_read(
    tmp_path: Path, kind: Any, endian: str, suffix: str
) -> None:
    data = bids.head((9, 18, 14), 0).transpose(2, 1, 0)
    image = kind(data, PLAIN, header=kind.header_class(endianness=endian))
    image.header.set_data_dtype(np.int16)
    (tmp_path / f"flair{suffix}").write_bytes(b"")
    nib.save(image, tmp_path / f"flair{suffix}")
    volume = read(tmp_path / f"flair{suffix}")
    np.testing.assert_array_equal(volume.data, data.transpose(2, 1, 0))
    assert volume.data.dtype == np.dtype(np.int16)  # native, whatever the file's order


@pytest.mark.parametrize(("sform", "qform"), [(0, 1), (1, 0), (2, 1), (0, 3), (4, 0)])
def test_sform_or_qform_alone_is_enough_and_is_written_back(
    tmp_path: Path, sform: int, qform: int
) -> None:
    data = bids.head((9, 18, 14), 0).transpose(2, 1, 0)
    affine = rotated(12)
    written = save(tmp_path / "flair.nii", data, affine, sform=sform, qform=qform)
    volume = read(tmp_path / "flair.nii")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    grid = place_slab(volume, settings=SETTINGS, brain=None)
    back = to_source_grid(np.zeros(SETTINGS.slab), grid, order=1)
    assert (back.header["sform_code"], back.header["qform_code"]) == (sform, qform)
    np.testing.assert_allclose(back.affine, written.affine, atol=1e-5)


def write_contradictory_header(path: Path, *, qform: Any) -> None:
    image = nib.Nifti1Image(np.zeros((14, 18, 9), np.int16), PLAIN)
    image.set_qform(qform, 1)
    image.set_sform(PLAIN, 1)
    image.header["pixdim"][1:4] = np.linalg.norm(np.asarray(qform)[:3, :3], axis=0)
    nib.save(image, path)
    # nibabel derives pixdim from the sform when it saves. Restore the value of the qform.
    raw = bytearray(path.read_bytes())
    raw[80:92] = image.header["pixdim"][1:4].astype("<f4").tobytes()
    path.write_bytes(raw)


def test_sform_is_used_if_the_qform_has_another_origin(tmp_path: Path) -> None:
    moved = PLAIN.copy()
    moved[:3, 3] += (4, -2, 1)
    write_contradictory_header(tmp_path / "flair.nii", qform=moved)
    np.testing.assert_allclose(read(tmp_path / "flair.nii").affine, PLAIN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((-1, 1, 1), "one orientation, got RAS from the sform, LAS from the qform"),
        ((1, 1, 0.5), "one voxel size, got (2, 2, 1.5) mm as pixdim and (2, 2, 3) mm from the aff"),
    ],
)
def test_contradictory_sform_and_qform_are_refused(
    tmp_path: Path, change: tuple[float, ...], words: str
) -> None:
    write_contradictory_header(tmp_path / "flair.nii", qform=PLAIN @ np.diag([*change, 1]))
    with pytest.raises(CaseError) as caught:
        open_nifti(SourceFile("sub-01", "w048", "flair", tmp_path / "flair.nii"))
    assert caught.value.exclusion.kind == "contradictory header"
    assert words in caught.value.exclusion.reason


@pytest.mark.parametrize(
    ("squared_norm", "legal"), [(1 + 6e-7, True), (1 + 1e-5, True), (1.1, False)]
)
@pytest.mark.parametrize("sform", [0, 1])
def test_quaternion_that_rounding_made_too_long_is_read(
    tmp_path: Path, squared_norm: float, legal: bool, sform: int
) -> None:
    path = tmp_path / "flair.nii"
    turned = PLAIN @ np.diag(
        [-1, -1, 1, 1]
    )  # half a turn: nothing is left for the fourth component
    save(path, bids.head((9, 18, 14), 0).transpose(2, 1, 0), turned, sform=sform)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<3f", raw, QUATERNION, 0, 0, squared_norm**0.5)
    path.write_bytes(raw)
    if legal:
        np.testing.assert_allclose(read(path).header.affine, turned, atol=1e-4)
    else:
        with pytest.raises(CaseError, match=r"of norm 1 or less, got norm 1\.049; correct"):
            read(path)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("offset", [0, 352, 543, -544, 2**63 - 1])
def test_first_voxel_of_nifti_2_lies_behind_its_longer_header(
    tmp_path: Path, endian: str, offset: int
) -> None:
    path = tmp_path / "flair.nii"
    header = nib.Nifti2Header(endianness=endian)
    nib.save(nib.Nifti2Image(bids.head((9, 18, 14), 0), PLAIN, header=header), path)
    raw = bytearray(path.read_bytes())
    struct.pack_into(f"{endian}q", raw, 168, offset)
    path.write_bytes(raw)
    with pytest.raises(CaseError, match="from 544 on as vox_offset in a single file, got"):
        read(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_extensions_of_the_header_are_skipped(tmp_path: Path, kind: Any, endian: str) -> None:
    data = bids.head((9, 18, 14), 0).transpose(2, 1, 0)
    image = kind(data, PLAIN, header=kind.header_class(endianness=endian))
    for size in (10, 5000):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
    nib.save(image, tmp_path / "flair.nii.gz")
    np.testing.assert_array_equal(read(tmp_path / "flair.nii.gz").data, data.transpose(2, 1, 0))


@pytest.mark.parametrize("units", [0, 2, 2 + 56, 2 + 192])
def test_unit_of_time_does_not_matter(tmp_path: Path, units: int) -> None:
    path = tmp_path / "flair.nii"
    save(path, bids.head((9, 18, 14), 0).transpose(2, 1, 0), PLAIN)
    raw = bytearray(path.read_bytes())
    raw[UNITS] = units
    path.write_bytes(raw)
    assert read(path).header.units == ("mm" if units else "unknown")


def test_resampling_agrees_with_scipy(tmp_path: Path) -> None:
    """Linear for images and nearest for masks, from 3 x 1 x 1 mm onto 2 x 0.7 x 0.8 mm."""
    settings = StoreSettings((9, 20, 18), (2.0, 0.7, 0.8), resample=True)
    geometry = bids.Geometry((9, 18, 20), (3.0, 1.0, 1.0), tilt=0, axes="LPS")
    rng = np.random.default_rng(0)
    canonical = rng.random(geometry.shape).astype(np.float32) + 1
    bids.write_volume(tmp_path / "flair.nii", canonical, geometry)
    grid = place_slab(read(tmp_path / "flair.nii"), settings=settings, brain=None)
    for data, order in ((canonical, 1), ((canonical > 1.5).astype(np.uint8), 0)):
        theirs = affine_transform(
            data, np.array(grid.scale), grid.offset, grid.slab, order=order, mode="nearest"
        )
        np.testing.assert_allclose(to_slab(data, grid, order=order), theirs, atol=1e-5)


def test_probability_masks_are_accepted_only_with_the_setting(trial: Path) -> None:
    path = bids.path_of(trial, "sub-01", "w048", "t2")
    shares = np.zeros((9, 18, 14), np.float32)
    shares[4, 9, 5:9] = (0.2, 0.49, 0.5, 1.0)
    bids.write_volume(path, shares, bids.Geometry())
    with pytest.raises(CaseError, match=r"0 and 1, got 3 voxels like 0\.\d+; .*probability_masks"):
        preprocess(trial)
    allowed = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, probability_masks=True)
    metadata, arrays = preprocess(trial, settings=allowed)
    s, h, w = np.array((4, 9, 7)) - np.array(metadata.grid.offset, int)
    assert np.argwhere(arrays.masks[1, 0]).tolist() == [[s, h, w], [s, h, w + 1]]
    bids.write_volume(path, shares * 2, bids.Geometry())
    with pytest.raises(CaseError, match="got 3 voxels like .*; threshold it"):
        preprocess(trial, settings=allowed)


def test_parcellation_on_its_own_grid_is_resampled_onto_the_slab(trial: Path) -> None:
    """SynthSeg's output: upright 1 mm voxels over an oblique FLAIR of 2 x 2 x 3 mm."""
    metadata, _ = preprocess(trial)
    origin, shape = np.array((-25.0, 5.0, -60.0)), (80, 45, 70)  # ends within the slab in front
    i, j, k = np.indices(shape)
    ids = np.array([2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 41, 42, 43, 44, 46, 47, 49, 50, 51])
    labels = ids[(7 * i + 3 * j + k) % 20]
    path = bids.path_of(trial, "sub-01", "w048", "parcellation")
    affine = np.eye(4)
    affine[:3, 3] = origin
    save(path, labels.astype(np.int32), affine)
    _, arrays = preprocess(trial)

    w, h, s = np.indices(SETTINGS.slab[::-1]).reshape(3, -1)
    places = np.array(metadata.grid.slab_affine) @ np.stack([w, h, s, np.ones_like(w)])
    i, j, k = np.rint(places[:3] - origin[:, None]).astype(int)
    inside = np.all([(a >= 0) & (a < n) for a, n in zip((i, j, k), shape, strict=True)], axis=0)
    assert 0.5 < inside.mean() < 1
    expected = np.where(inside, ids[(7 * i + 3 * j + k) % 20], 0)
    np.testing.assert_array_equal(arrays.parcellation[s, h, w], expected)


@pytest.mark.parametrize(
    "ids",
    [
        (2, 3, 41, 42, 77),
        (2, 1001, 41, 2035),
        (2, 11101, 41, 12175, 11142),
        (2, 3, 4, 5, 7, 8, 10, 41, 42, 43, 44, 46, 47, 49, 60),
    ],
)
def test_known_label_maps_become_white_matter_and_cortex(trial: Path, ids: tuple[int, ...]) -> None:
    path = bids.path_of(trial, "sub-01", "w048", "parcellation")
    bids.write_volume(path, np.resize(np.array(ids, np.int16), (9, 18, 14)), bids.Geometry())
    _, arrays = preprocess(trial)
    stored = set(np.unique(arrays.parcellation))
    assert {2, 3, 41, 42} <= stored
    assert max(stored) < 1000


def test_cortical_parcels_are_merged(trial: Path) -> None:
    path = bids.path_of(trial, "sub-01", "w048", "parcellation")
    ids = np.full((9, 18, 14), 17, np.int16)
    ids[4, 9, 2:12] = (1000, 1001, 1035, 1036, 2000, 2001, 2035, 2036, 2, 41)
    bids.write_volume(path, ids, bids.Geometry())
    metadata, arrays = preprocess(trial)
    s, h, w = np.array((4, 9, 2)) - np.array(metadata.grid.offset, int)
    labels = arrays.parcellation[s, h, w : w + 10].tolist()
    assert labels == [1000, 3, 3, 1036, 2000, 42, 42, 2036, 2, 41]
