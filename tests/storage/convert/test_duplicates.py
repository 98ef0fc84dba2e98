"""Files are checked against each other: one file in two roles, and copies of an image."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from storage.convert.summary import summarise
from storage.errors import CaseError
from storage.settings import TrialLayout
from storage.store.split import assign_splits
from storage.trial.dataset import scan_trial
from tests.storage.convert.conversion import GEOMETRY, SETTINGS, converted
from tests.support import bids

Copy = Callable[[Path, Path], None]


def copied(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def linked(source: Path, target: Path) -> None:
    target.unlink()
    target.symlink_to(source)


def repacked(source: Path, target: Path) -> None:
    target.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))


def rescaled(source: Path, target: Path) -> None:
    """Write the image as floats of another unit with another order of axes."""
    image = nib.as_closest_canonical(nib.load(source))
    data = np.asarray(image.dataobj, np.float32) * 3.7
    nib.save(nib.Nifti1Image(data, image.affine), target)


COPIES = pytest.mark.parametrize("copy", [copied, linked, repacked, rescaled])


def reasons(root: Path, path: Path, **layout: object) -> dict[str, tuple[str, str, str]]:
    """Convert and return kind, session and reason of each exclusion by subject."""
    settings = replace(SETTINGS, layout=TrialLayout(**layout))  # type: ignore[arg-type]
    store, _ = converted(root, path, settings=settings)
    return {e.subject: (e.kind, e.session, e.reason) for e in store.table.excluded}


@COPIES
@pytest.mark.parametrize(("earlier", "later"), [("w000", "w048"), ("w048", "w096")])
def test_one_image_at_two_sessions_excludes_the_subject(
    tmp_path: Path, copy: Copy, earlier: str, later: str
) -> None:
    bids.write_trial(tmp_path / "bids", 2, geometry=GEOMETRY)
    copy(
        *(
            bids.path_of(tmp_path / "bids", "sub-01", session, "flair")
            for session in (earlier, later)
        )
    )
    excluded = reasons(tmp_path / "bids", tmp_path / "store.zarr")
    assert excluded.keys() == {"sub-01"}
    assert excluded["sub-01"][0] == "one image at two sessions"
    assert f"{earlier}" in excluded["sub-01"][2]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("w048", "net2"), ("w096", "net2")),
        (("w000", "gad"), ("w048", "gad")),
        (("w048", "t2"), ("w048", "brain_mask")),
    ],
)
def test_one_file_as_two_channels_excludes_the_subject(
    tmp_path: Path, source: tuple[str, str], target: tuple[str, str]
) -> None:
    root = tmp_path / "bids"
    bids.write_trial(root, 2, geometry=GEOMETRY)
    bids.path_of(root, "sub-01", *target).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(bids.path_of(root, "sub-01", *source), bids.path_of(root, "sub-01", *target))
    kind, _, reason = reasons(root, tmp_path / "store.zarr")["sub-01"]
    assert kind == "one file in two roles"
    assert "put the right file there" in reason


def test_equal_masks_that_may_be_equal_are_accepted(tmp_path: Path) -> None:
    """T2 lesions that did not change, all of them new, and masks without a lesion."""
    root = tmp_path / "bids"
    bids.write_trial(root, 2, geometry=GEOMETRY)
    path = lambda *role: bids.path_of(root, "sub-01", *role)  # noqa: E731
    shutil.copy(path("w048", "t2"), path("w096", "t2"))
    shutil.copy(path("w048", "net2"), path("w048", "gad"))
    for session in ("w048", "w096"):
        bids.alter(path(session, "net2"), np.zeros_like)
    assert reasons(root, tmp_path / "store.zarr") == {}


def test_pattern_that_gives_a_file_two_channels_excludes_the_subject(tmp_path: Path) -> None:
    """The T2 mask was never drawn, and its pattern also fits the mask of new lesions."""
    root = tmp_path / "bids"
    bids.write_trial(root, 3, geometry=GEOMETRY)
    bids.path_of(root, "sub-02", "w048", "t2").unlink()
    for name, session in (("sub-01", "w048"), ("sub-03", "w048"), ("sub-03", "w096")):
        bids.path_of(root, name, session, "net2").unlink()
    t2 = "derivatives/lesions/sub-{subject}/ses-{session}/anat/*{session}_*2_mask.nii*"
    excluded = reasons(root, tmp_path / "store.zarr", t2=t2)
    assert excluded.keys() == {"sub-01", "sub-02"}
    # sub-01 has both files at w096, where the loose pattern matches two.
    assert excluded["sub-01"][0] == "ambiguous files"
    assert excluded["sub-02"][:2] == ("one file in two roles", "w048")
    assert "sub-02 w048 net2 too; narrow the patterns" in excluded["sub-02"][2]


@pytest.mark.parametrize("labels", [("m1", "m12", "m24"), ("base", "base2", "end")])
def test_pattern_that_gives_a_file_two_sessions_excludes_the_subject(
    tmp_path: Path, labels: tuple[str, str, str]
) -> None:
    root = tmp_path / "bids"
    bids.write_trial(root, 2, geometry=GEOMETRY)
    for name in ("sub-01", "sub-02"):
        for session, label in zip(bids.SESSIONS, labels, strict=True):
            if (name, session) != ("sub-02", "w000"):
                target = root / "scans" / name[4:] / f"{label}_flair.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(bids.path_of(root, name, session, "flair"), target)
    flair = "scans/{subject}/{session}*flair.nii*"
    if labels[0] == "m1":  # the wildcard does not continue a number, so m1 is not m12
        excluded = reasons(root, tmp_path / "store.zarr", sessions=labels, flair=flair)
        assert excluded.keys() == {"sub-02"}
        assert excluded["sub-02"][0] == "missing session"
    else:
        subjects = scan_trial(root, TrialLayout(sessions=labels, flair=flair))
        for subject, kind in zip(subjects, ("ambiguous files", "one file in two"), strict=True):
            with pytest.raises(CaseError) as caught:
                subject.source("w000", "flair")
            assert caught.value.exclusion.kind.startswith(kind)


@COPIES
@pytest.mark.parametrize(("one", "other"), [("w048", "w048"), ("w096", "w000")])
def test_copies_of_a_patient_share_a_split_and_are_reported(
    tmp_path: Path, copy: Copy, one: str, other: str
) -> None:
    root = tmp_path / "bids"
    bids.write_trial(root, 12, geometry=GEOMETRY)
    pairs = [("sub-02", "sub-05"), ("sub-01", "sub-12"), ("sub-06", "sub-09"), ("sub-03", "sub-04")]
    for source, target in pairs:
        copy(bids.path_of(root, source, one, "flair"), bids.path_of(root, target, other, "flair"))
    settings = replace(SETTINGS, split_fractions=(0.5, 0.0, 0.5))
    for seed in range(6):
        store, _ = converted(root, tmp_path / "store.zarr", settings=settings, seed=seed)
        split = {case.subject: case.split for case in store.cases}
        assert [split[source] == split[target] for source, target in pairs] == [True] * 4
    lines = summarise(store.table)
    assert "4 images under two subjects, who share a split; correct them:" in lines
    assert f"  sub-02 at {one} and sub-05 at {other} are the same image" in lines


def test_split_of_copies_never_moves_a_subject_from_train_to_test() -> None:
    arms: dict[str, str | None] = {f"sub-{i}": "placebo" if i % 2 else "avonex" for i in range(20)}
    before = assign_splits(arms, (0.5, 0.0, 0.5), seed=0)
    train = next(name for name in arms if before[name] == "train")
    test = next(name for name in arms if before[name] == "test")
    for group in ((train, test), (test, train)):
        after = assign_splits(arms, (0.5, 0.0, 0.5), seed=0, existing_splits=before, groups=[group])
        assert after[train] == after[test] == "train"
        assert {name: after[name] for name in arms if name != test} == {
            name: before[name] for name in arms if name != test
        }
