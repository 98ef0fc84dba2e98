"""Corrupt inputs as sites send them: one entry per kind, each applied to its own subject.

An entry names the corruption, the kind of the expected exclusion, and words that its reason must
contain: what was expected, what was found, what to do.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.support import bids
from tests.support.corruptions import (
    BITPIX,
    DATATYPE,
    DIM,
    EXTENDER,
    GEOMETRY,
    GLMIN,
    MAGIC,
    OFFSET,
    PIXDIM,
    QFORM,
    QOFFSET,
    QUATERNION,
    SFORM,
    SLOPE,
    SROW,
    UNITS,
    Harm,
    add_second_run,
    add_twin_folder,
    add_unzipped_copy,
    as_type,
    at,
    bad_checksum,
    brain_of,
    content,
    everywhere,
    flair,
    labelled,
    move_brain_mask_off_the_head,
    patch,
    put,
    remove_folders,
    repacked,
    replaced,
    rotate_by_35_degrees,
    rows,
    sheared,
    stacked,
    unpacked,
    voxels,
    with_affine,
)

GOOD_SUBJECTS = ("sub-g1", "sub-g2", "sub-g3")
_UNREADABLE = "unreadable file"
_WHOLE = "expected a whole NIfTI file"
_AGAIN = "copy it again"
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    `harm(root, name)` corrupts the subject `name` of the trial at `root`.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    harm: Harm


FILES = [
    Corruption(
        "cut gzip", _UNREADABLE, (_WHOLE, "EOFError", _AGAIN), flair(content(lambda r: r[:-200]))
    ),
    Corruption("other checksum", _UNREADABLE, (_WHOLE, "CRC"), flair(content(bad_checksum))),
    Corruption(
        "voxels missing in whole gzip",
        _UNREADABLE,
        (_WHOLE, "Expected 4536 bytes"),
        flair(repacked(lambda r: r[:-100])),
    ),
    Corruption(
        "cut .nii",
        _UNREADABLE,
        (_WHOLE, "got 4788 bytes whose header claims 4888", _AGAIN),
        flair(unpacked(lambda r: r[:-100])),
    ),
    Corruption("no bytes", _UNREADABLE, (_WHOLE, "it is empty"), flair(content(lambda _: b""))),
    Corruption(
        "header cut", _UNREADABLE, (_WHOLE, "WrapStructError"), flair(unpacked(lambda r: r[:99]))
    ),
    Corruption("text", _UNREADABLE, (_WHOLE, _AGAIN), flair(content(lambda _: b"see drive " * 90))),
    Corruption(
        "packed text", _UNREADABLE, (_WHOLE,), flair(repacked(lambda _: b"see drive " * 90))
    ),
    Corruption(
        "a folder", _UNREADABLE, ("expected a file, got a folder",), flair(replaced(Path.mkdir))
    ),
    Corruption(
        "a link to nothing",
        _UNREADABLE,
        ("got a link to nothing; put the file there",),
        flair(replaced(lambda p: p.symlink_to("/nowhere/annex"))),
    ),
    Corruption("a pipe", _UNREADABLE, ("expected a file, got none",), flair(replaced(os.mkfifo))),
    Corruption(
        "a file that cannot be read",
        _UNREADABLE,
        (_WHOLE, "OSError: [Errno"),
        flair(replaced(lambda p: p.symlink_to("/proc/self/mem"))),
    ),
    Corruption(
        "the .hdr of a pair",
        "illegal header",
        ("header and voxels in one file", "got ni1, which means voxels in an .img file"),
        flair(lambda p: (patch(MAGIC, "3s", b"ni1")(p), unpacked(lambda r: r[:348])(p))),
    ),
    Corruption(
        "megabytes after the voxels",
        _UNREADABLE,
        ("more than 1 MiB after its voxels",),
        flair(repacked(lambda r: r + bytes(2**27))),
    ),
    Corruption(
        "first voxel beyond the end",
        _UNREADABLE,
        (_WHOLE, "whose header claims 1000"),
        flair(patch(OFFSET, "f", 1e9)),
    ),
]

HEADERS = [
    Corruption(
        "16 TB of voxels",
        "too large",
        ("at most 2048 MiB of voxels", "crop it"),
        flair(patch(DIM, "4h", 3, 20000, 20000, 20000)),
    ),
    Corruption(
        "1 GB in some kB",
        _UNREADABLE,
        ("bytes whose header claims 1024000352",),
        flair(patch(DIM, "4h", 3, 800, 800, 800)),
    ),
    Corruption(
        "a size below 0",
        "not a volume",
        ("three sizes of 1 or more", "(14, -18, 9)"),
        flair(patch(DIM, "4h", 3, 14, -18, 9)),
    ),
    Corruption(
        "a size of 0",
        "not a volume",
        ("(14, 0, 9)", "export it again"),
        flair(patch(DIM, "4h", 3, 14, 0, 9)),
    ),
    Corruption("a line", "not a volume", ("got shape (2268,)",), flair(voxels(np.ravel))),
    Corruption(
        "a slice", "not a volume", ("got shape (14, 18)",), flair(voxels(lambda d: d[..., 4]))
    ),
    Corruption("nine dimensions", _UNREADABLE, (_WHOLE,), flair(patch(DIM, "h", 9))),
    Corruption(
        "two frames", "several frames", ("(14, 18, 9, 2)", "keep the one"), flair(voxels(stacked))
    ),
    Corruption(
        "a vector field",
        "several frames",
        ("(14, 18, 9, 1, 3)",),
        flair(voxels(lambda d: np.stack([d[..., None]] * 3, axis=-1))),
    ),
    Corruption(
        "colours", "wrong datatype", ("got colours; convert it to a grey",), flair(as_type(_RGB))
    ),
    Corruption(
        "complex numbers",
        "wrong datatype",
        ("one real number", "complex64"),
        flair(as_type(np.complex64)),
    ),
    Corruption(
        "a datatype nobody knows",
        _UNREADABLE,
        (_WHOLE, "HeaderDataError"),
        flair(patch(DATATYPE, "h", 999)),
    ),
]

FIELDS = [
    Corruption(
        "header bytes as first voxels",
        "illegal header",
        ("from 352 on as vox_offset in a single file, got 0; correct the header",),
        flair(patch(OFFSET, "f", 0.0)),
    ),
    Corruption(
        "first voxel inside the header",
        "illegal header",
        ("as vox_offset in a single file, got 351",),
        flair(patch(OFFSET, "f", 351.0), "w000"),
    ),
    Corruption(
        "first voxel between two bytes",
        "illegal header",
        ("a whole number of bytes", "got 352.5"),
        flair(patch(OFFSET, "f", 352.5)),
    ),
    Corruption(
        "first voxel nowhere",
        "illegal header",
        ("as vox_offset", "got nan"),
        flair(patch(OFFSET, "f", np.nan)),
    ),
    Corruption(
        "a mask with header bytes as voxels",
        "illegal header",
        ("as vox_offset", "got 0;"),
        at("w048", "net2", patch(OFFSET, "f", 0.0)),
    ),
    Corruption(
        "an extension as first voxels",
        "illegal header",
        ("a first voxel behind the header's extension of 64 bytes, got vox_offset 352",),
        flair(patch(EXTENDER, "4B2i", 1, 0, 0, 0, 64, 6)),
    ),
    Corruption(
        "magic of a pair",
        "illegal header",
        ("got ni1, which means voxels in an .img file",),
        flair(patch(MAGIC, "3s", b"ni1")),
    ),
    Corruption(
        "bits of another datatype",
        "illegal header",
        ("a bitpix of 16, as datatype 4 has, got 8",),
        flair(patch(BITPIX, "h", 8)),
    ),
    Corruption(
        "slope NaN",
        "illegal header",
        ("a finite slope in scl_slope, got nan",),
        flair(patch(SLOPE, "f", np.nan)),
    ),
    Corruption(
        "slope infinite",
        "illegal header",
        ("a finite slope in scl_slope, got inf",),
        at("w048", "t2", patch(SLOPE, "f", np.inf)),
    ),
    Corruption(
        "intercept NaN",
        "illegal header",
        ("a finite intercept in scl_inter, got nan",),
        flair(patch(SLOPE, "2f", 2.0, np.nan)),
    ),
    Corruption(
        "pixdim below 0",
        "illegal header",
        ("positive voxel sizes", "got (-2, 2, 3)"),
        flair(patch(PIXDIM + 4, "f", -2.0)),
    ),
    Corruption(
        "handedness of 2",
        "illegal header",
        ("-1 or 1 in pixdim[0], the handedness of the qform, got 2.0",),
        flair(patch(PIXDIM, "f", 2.0)),
    ),
    Corruption(
        "sform code of 9",
        "illegal header",
        ("a code from 0 to 5 in sform_code, got 9",),
        flair(patch(SFORM, "h", 9)),
    ),
    Corruption(
        "qform code below 0",
        "illegal header",
        ("a code from 0 to 5 in qform_code, got -1",),
        flair(patch(QFORM, "h", -1)),
    ),
    Corruption(
        "quaternion of norm 2",
        "illegal header",
        ("of norm 1 or less, got norm 2",),
        flair(patch(QUATERNION, "3f", 0.0, 0.0, 2.0)),
    ),
    Corruption(
        "quaternion NaN",
        "illegal header",
        ("of norm 1 or less, got norm nan",),
        flair(patch(QUATERNION, "f", np.nan)),
    ),
    Corruption(
        "origin NaN",
        "illegal header",
        ("a finite origin in qoffset_x", "[nan, "),
        flair(patch(QOFFSET, "f", np.nan)),
    ),
    Corruption(
        "another sizeof_hdr",
        _UNREADABLE,
        ("sizeof_hdr is 348, got 347; copy it again",),
        flair(patch(0, "i", 347)),
    ),
    Corruption(
        "unit metre",
        "voxel size",
        ("mm, or no unit, in xyzt_units, got metre; convert",),
        flair(patch(UNITS, "B", 1)),
    ),
    Corruption(
        "unit nobody knows", "voxel size", ("got the unknown code 5",), flair(patch(UNITS, "B", 5))
    ),
    Corruption(
        "a size of -1",
        "not a volume",
        ("got shape (-1, 1, 1)",),
        flair(lambda p: (patch(DIM, "4h", 3, -1, 1, 1)(p), patch(GLMIN, "i", 2268)(p))),
    ),
]

GRIDS = [
    Corruption(
        "no code",
        "no orientation",
        ("leave left and right open; set one of them",),
        flair(lambda p: (patch(SFORM, "h", 0)(p), patch(QFORM, "h", 0)(p))),
    ),
    Corruption(
        "NaN in the affine",
        "no orientation",
        ("expected a finite affine",),
        flair(patch(SROW, "f", np.nan)),
    ),
    Corruption(
        "a plane as affine",
        "no orientation",
        ("an affine of full rank",),
        flair(patch(SROW, "8f", *(0.0, 2.0, 0.0, 0.0) * 2)),
    ),
    Corruption(
        "pixdim of 0",
        "contradictory header",
        ("one voxel size, got (0, 2, 3) mm as pixdim",),
        flair(patch(PIXDIM + 4, "f", 0.0)),
    ),
    Corruption(
        "pixdim against sform",
        "contradictory header",
        ("got (2, 2, 5) mm as pixdim", "correct"),
        flair(patch(PIXDIM + 12, "f", 5.0)),
    ),
    Corruption(
        "sform mirrors qform",
        "contradictory header",
        ("RPS from the sform, LPS from the qform",),
        flair(lambda p: patch(SROW, "4f", *(-v for v in nib.load(p).affine[0]))(p)),
    ),
    Corruption(
        "micrometres",
        "voxel size",
        ("expected voxels of 0.05 to 20 mm, got (2000, 2000, 3000)",),
        flair(with_affine(lambda a: a @ np.diag([1e3, 1e3, 1e3, 1]))),
    ),
    Corruption(
        "metres",
        "voxel size",
        ("got (0.002, 0.002, 0.003)", "correct the affine"),
        flair(with_affine(lambda a: a @ np.diag([1e-3, 1e-3, 1e-3, 1]))),
    ),
    Corruption(
        "oblique",
        "too oblique",
        ("within 30 degrees", "got 35.0", "reslice it"),
        flair(rotate_by_35_degrees),
    ),
    Corruption(
        "sheared", "sheared", ("axes at right angles", "rigid"), flair(with_affine(sheared))
    ),
    Corruption(
        "other spacing",
        "wrong spacing",
        ("(3.0, 2.0, 2.0) mm, got (3, 2, 1.6)", "store.resample"),
        flair(with_affine(lambda a: a @ np.diag([0.8, 1, 1, 1]))),
    ),
    Corruption(
        "four slices",
        "too few slices",
        ("expected 15 mm", "got 12 mm", "store.slab"),
        flair(voxels(lambda d: d[..., :4])),
    ),
    Corruption(
        "a strip",
        "field too small",
        ("expected 8 mm or more across, got 6 mm",),
        flair(voxels(lambda d: d[:3])),
    ),
    Corruption(
        "another shape at w000",
        "wrong shape",
        ("(9, 18, 14), got (9, 18, 13)", "register"),
        flair(voxels(lambda d: d[:-1]), "w000"),
    ),
    Corruption(
        "w096 moved",
        "affines disagree",
        ("within 0.1 mm, got corners 1.50 mm away", "register"),
        flair(with_affine(lambda a: a + np.eye(4, k=3) * 1.5), "w096"),
    ),
    Corruption(
        "mask mirrored",
        "affines disagree",
        ("mm away; register and resample the file",),
        at("w048", "net2", with_affine(lambda a: np.diag([-1, 1, 1, 1]) @ a)),
    ),
    Corruption(
        "mask with turned axes",
        "wrong shape",
        ("got (9, 14, 18)",),
        at("w048", "t2", voxels(lambda d: d.transpose(1, 0, 2))),
    ),
]

VOXELS = [
    Corruption(
        "NaN", "not finite", ("finite voxels, got 1 that are NaN or infinite",), flair(put(np.nan))
    ),
    Corruption(
        "infinity", "not finite", ("got 1 that are", "export it again"), flair(put(np.inf), "w096")
    ),
    Corruption(
        "all zero",
        "constant image",
        ("an image, got 0 in every voxel",),
        flair(voxels(everywhere(0))),
    ),
    Corruption(
        "all alike",
        "constant image",
        ("got 7 in every voxel",),
        flair(voxels(everywhere(7)), "w000"),
    ),
    Corruption(
        "one speck",
        "no contrast",
        ("expected contrast, got 8 at both", "look at the image"),
        flair(
            voxels(
                lambda d: np.where(np.arange(d.size).reshape(d.shape) == 99, 8, 7).astype(np.int16)
            )
        ),
    ),
    Corruption(
        "brain mask off the head",
        "no contrast",
        ("got 0 at both percentiles",),
        move_brain_mask_off_the_head,
    ),
    Corruption(
        "brain mask of nothing",
        "empty brain mask",
        ("a brain, got 0 everywhere",),
        brain_of(everywhere(0)),
    ),
    Corruption(
        "brain mask of all",
        "mask of everything",
        ("got 1 everywhere; redo",),
        brain_of(everywhere(1)),
    ),
    Corruption(
        "brain in 255",
        "not binary",
        ("0 and 1, got 2268 voxels like 255",),
        brain_of(everywhere(255)),
    ),
    Corruption(
        "mask with 2",
        "not binary",
        ("got 1 voxels like 2.0; threshold it",),
        at("w096", "net2", put(2)),
    ),
    Corruption(
        "mask below 0", "not binary", ("got 1 voxels like -1.0",), at("w000", "t2", put(-1))
    ),
    Corruption(
        "mask of shares",
        "not binary",
        ("like 0.25; threshold it, or set store.probability_masks",),
        at("w048", "gad", put(0.25)),
    ),
    Corruption(
        "mask with NaN", "not finite", ("got 1 that are NaN",), at("w048", "t2", put(np.nan))
    ),
    Corruption(
        "mask of all",
        "mask of everything",
        ("got 1 everywhere; redo it",),
        at("w048", "net2", voxels(everywhere(1))),
    ),
    Corruption(
        "labels in fractions",
        "not labels",
        ("FreeSurfer ids, got 1 voxels like 2.5",),
        at("w048", "parcellation", put(2.5)),
    ),
    Corruption(
        "labels beyond 16 bits",
        "not labels",
        ("like 70000.0; export it again",),
        at("w048", "parcellation", put(70000)),
    ),
    Corruption(
        "no labels",
        "empty parcellation",
        ("expected labels, got 0 everywhere",),
        at("w048", "parcellation", voxels(everywhere(0))),
    ),
    Corruption(
        "labels elsewhere",
        "parcellation elsewhere",
        ("got all of them elsewhere; make it from this",),
        at("w048", "parcellation", with_affine(lambda a: a + np.eye(4, k=3) * 900)),
    ),
]

LABELS = [
    Corruption(
        "a brain mask as labels",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "got a brain mask without left white matter, right white matter, left cortex",
        ),
        at("w048", "parcellation", labelled((1,))),
    ),
    Corruption(
        "tissue classes as labels",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "got ids up to 3, as of tissue classes, without right white matter, right cortex",
        ),
        at("w048", "parcellation", labelled((1, 2, 3))),
    ),
    Corruption(
        "labels of one side",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "without right white matter, right cortex",
        ),
        at("w048", "parcellation", labelled((2, 3, 4, 10))),
    ),
    Corruption(
        "labels of cortical parcels alone",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "without left white matter, right white matter; use",
        ),
        at("w048", "parcellation", labelled((1001, 1035, 2001, 2035))),
    ),
    Corruption(
        "labels of white matter parcels",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "4 of 6 ids that these lack, such as 3001",
        ),
        at("w048", "parcellation", labelled((3001, 3035, 4001, 4035, 1001, 2001))),
    ),
    Corruption(
        "an atlas of 1 to 116",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "of 116 ids that these lack, such as 6",
        ),
        at("w048", "parcellation", labelled(range(1, 117))),
    ),
    Corruption(
        "an atlas of 1 to 48",
        "unknown labels",
        (
            "in ids of aseg, aparc+aseg, a2009s+aseg or SynthSeg",
            "of 48 ids that these lack, such as 6",
        ),
        at("w048", "parcellation", labelled(range(1, 49))),
    ),
]

SUBJECTS = [
    Corruption(
        "no w000",
        "missing session",
        ("a FLAIR at w000, got FLAIR at w048, w096",),
        flair(Path.unlink, "w000"),
    ),
    Corruption(
        "no w048",
        "missing session",
        ("a FLAIR at w048, got FLAIR at w000, w096",),
        flair(Path.unlink),
    ),
    Corruption(
        "a row and no folder", "missing session", ("got FLAIR at no session",), remove_folders
    ),
    Corruption(
        "packed and not",
        "ambiguous files",
        ("one flair file, got", ".nii, ", "narrow the pattern"),
        flair(add_unzipped_copy),
    ),
    Corruption(
        "a second run",
        "ambiguous files",
        ("one flair file", "run-2"),
        flair(add_second_run, "w096"),
    ),
    Corruption(
        "no row",
        "not listed once",
        ("one row in participants.tsv, got 0; list it once",),
        rows(lambda line, _: ""),
    ),
    Corruption("two rows", "not listed once", ("got 2",), rows(lambda line, _: line * 2)),
    Corruption(
        "a row that climbs",
        "not listed once",
        ("got 2",),
        rows(lambda line, name: line + line.replace(name, f"../../{name[4:]}")),
    ),
    Corruption(
        "an arm nobody gave",
        "unknown arm",
        ("(placebo, avonex, ocrelizumab) or n/a, got 'asp",),
        rows(lambda line, _: line.replace("placebo", "aspirin")),
    ),
    Corruption(
        "two folders of one name",
        "one name for several",
        ("differ in letters and digits",),
        add_twin_folder,
    ),
]

CORRUPTIONS = [*FILES, *HEADERS, *FIELDS, *GRIDS, *VOXELS, *LABELS, *SUBJECTS]


def subject_for(index: int) -> str:
    """Return the subject that the entry at that index of `CORRUPTIONS` corrupted."""
    return f"sub-h{index:02d}"


def write_corrupt_trial(root: Path) -> None:
    """Write a trial with three good subjects and one for each entry of `CORRUPTIONS`."""
    model = root / "model"
    bids.write_subject(model, "sub-model", geometry=GEOMETRY, seed=1)
    names = [*GOOD_SUBJECTS, *map(subject_for, range(len(CORRUPTIONS)))]
    bids.write_participants(root, dict.fromkeys(names, "placebo"))
    for path in [path for path in model.rglob("*") if path.is_file()]:
        for name in names:
            copy = root / str(path.relative_to(model)).replace("sub-model", name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    shutil.rmtree(model)
    for index, entry in enumerate(CORRUPTIONS):
        entry.harm(root, subject_for(index))
