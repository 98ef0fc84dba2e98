"""Who may not enter a store, and that the reason names subject, session and file."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic_bids as bids

from storage.bids import read_trial
from storage.errors import CaseError, StorageError
from storage.layout import CHANNELS, MASKS, SESSIONS
from storage.prepare import CaseArrays, Facts, prepare
from storage.settings import StoreSettings, TrialLayout

SETTINGS = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False)


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    bids.write_trial(tmp_path, 2)
    return tmp_path


def prepared(
    trial: Path, name: str = "sub-02", settings: StoreSettings = SETTINGS
) -> tuple[Facts, CaseArrays]:
    (subject,) = (s for s in read_trial(trial, settings.layout) if s.name == name)
    return prepare(subject, trial, settings=settings, arms=bids.ARMS)


def spoil(path: Path, value: float) -> None:
    def change(data: bids.Array) -> bids.Array:
        data = data.astype(np.float32)
        data[3, 4, 5] = value
        return data

    bids.alter(path, change)


def shift(path: Path, millimetres: float) -> None:
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += millimetres
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def corrupt(path: Path) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(bytes(raw[:-100])))


def forget_orientation(path: Path) -> None:
    image = nib.load(path)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, path)


def stack(path: Path) -> None:
    bids.alter(path, lambda data: np.stack([data, data], axis=-1))


def blank(path: Path) -> None:
    bids.alter(path, np.ones_like)


BAD_FILES: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "missing session": ("w000", "flair", Path.unlink, "got FLAIR at w048, w096"),
    "unreadable file": ("w048", "flair", truncate, "expected a whole NIfTI file, got EOFError"),
    "unreadable file ": ("w096", "t2", corrupt, "expected a whole NIfTI file, got OSError"),
    "wrong shape": ("w000", "flair", lambda p: bids.alter(p, lambda d: d[:-1]), "(9, 18, 13)"),
    "affines disagree": ("w048", "gad", lambda p: shift(p, 1.5), "corners 1.50 mm away"),
    "not finite": ("w096", "flair", lambda p: spoil(p, np.nan), "got 1 that are NaN or infinite"),
    "not binary": ("w048", "net2", lambda p: spoil(p, 0.5), "got 1 voxels like 0.5"),
    "not labels": ("w048", "parcellation", lambda p: spoil(p, 2.5), "FreeSurfer ids"),
    "several frames": ("w048", "flair", stack, "got shape (14, 18, 9, 2)"),
    "constant image": ("w000", "flair", blank, "got 1 in every voxel"),
    "no orientation": ("w048", "t2", forget_orientation, "leave left and right open"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_by_name_and_reason(trial: Path, kind: str) -> None:
    session, channel, harm, reason = BAD_FILES[kind]
    path = bids.path_of(trial, "sub-02", session, channel)
    harm(path)
    with pytest.raises(CaseError) as caught:
        prepared(trial)
    refusal = caught.value.refusal
    assert (refusal.subject, refusal.session, refusal.kind) == ("sub-02", session, kind.strip())
    assert reason in refusal.reason
    assert str(refusal).startswith(f"sub-02, ses-{session}: expected ")
    if path.exists():
        assert refusal.path == str(path)
    prepared(trial, "sub-01")  # the other subject is well


def test_an_unknown_arm_is_refused(trial: Path) -> None:
    bids.write_participants(trial, {"sub-01": "placebo", "sub-02": "aspirin"})
    with pytest.raises(CaseError, match=r"sub-02: expected treatment_arm in .*, got 'aspirin'"):
        prepared(trial)


@pytest.mark.parametrize("lines", [[], [2, 2]])
def test_a_subject_must_be_listed_once(trial: Path, lines: list[int]) -> None:
    table = trial / "participants.tsv"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*rows[:2], *(rows[line] for line in lines)]))
    with pytest.raises(CaseError, match=f"one row in participants.tsv, got {len(lines)}"):
        prepared(trial)


def test_a_listed_subject_without_files_lacks_a_session(trial: Path) -> None:
    bids.write_participants(trial, dict.fromkeys(("sub-01", "sub-02", "sub-03"), "avonex"))
    with pytest.raises(CaseError, match="sub-03, ses-w000: .* got FLAIR at no session"):
        prepared(trial, "sub-03")


def test_two_files_for_one_input_are_refused(trial: Path) -> None:
    path = bids.path_of(trial, "sub-02", "w048", "flair")
    path.with_name(path.name.replace("_FLAIR", "_run-2_FLAIR")).write_bytes(path.read_bytes())
    with pytest.raises(CaseError, match="expected one flair file, got .*run-2_FLAIR"):
        prepared(trial)


def test_another_spacing_is_refused_unless_resampling_is_on(trial: Path) -> None:
    settings = StoreSettings((5, 12, 16), (3.0, 1.5, 1.5), resample=False)
    with pytest.raises(CaseError, match=r"expected .* spacing \(3.0, 1.5, 1.5\) mm, got \(3, "):
        prepared(trial, settings=settings)
    resampled = StoreSettings((5, 12, 16), (3.0, 1.5, 1.5), resample=True)
    facts, _ = prepared(trial, settings=resampled)
    assert not facts.grid.exact


def test_a_volume_with_fewer_slices_than_the_slab_is_refused(trial: Path) -> None:
    settings = StoreSettings((15, 12, 16), (3.0, 2.0, 2.0), resample=False)
    with pytest.raises(CaseError, match="expected 45 mm or more from bottom to top, got 27 mm"):
        prepared(trial, settings=settings)


def test_a_folder_that_is_no_trial_is_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"expected the trial's table of participants"):
        read_trial(tmp_path, TrialLayout())
    (tmp_path / "participants.tsv").write_text("subject,arm\n")
    with pytest.raises(StorageError, match="set apart by tabs, one of them participant_id"):
        read_trial(tmp_path, TrialLayout())


def test_a_whole_case_is_stored_to_the_voxel(tmp_path: Path) -> None:
    made = bids.write_trial(tmp_path, 2)["sub-02"]
    facts, arrays = prepared(tmp_path)
    s, h = (slice(int(o), int(o) + n) for o, n in zip(facts.grid.offset[:2], (5, 12), strict=True))
    for (session, channel), volume in made.items():
        if channel in MASKS:
            stored = arrays.masks[SESSIONS.index(session), MASKS.index(channel)]
            np.testing.assert_array_equal(stored[:, :, 1:15], volume[s, h])
            assert not stored[:, :, [0, 15]].any()
    cortex = np.isin(made["w048", "parcellation"][s, h], (3, 42, 1007, 2035))
    np.testing.assert_array_equal(np.isin(arrays.parcellation, (3, 42))[:, :, 1:15], cortex)
    assert arrays.flair.dtype == np.float16
    assert arrays.flair.min() == -1
    assert arrays.flair.max() == 1
    outside = made["w048", "flair"][s, h] == 0
    assert (arrays.flair[1][:, :, 1:15][outside] == -1).all()
    assert facts.covariates == {"age": 31, "sex": "F", "edss": None}
    assert (facts.arm, facts.trial) == ("avonex", "OPERA")
    assert len(facts.digests) == len(made)


def test_optional_inputs_may_be_absent(trial: Path) -> None:
    bids.write_participants(trial, {"sub-01": "placebo", "sub-02": "n/a"})
    for session in SESSIONS:
        for channel in (*MASKS, "parcellation"):
            bids.path_of(trial, "sub-02", session, channel).unlink(missing_ok=True)
    bids.path_of(trial, "sub-02", "w096", "flair").unlink()
    facts, arrays = prepared(trial)
    flair = CHANNELS.index("flair")
    assert arrays.present[:, flair].tolist() == [True, True, False]
    assert np.count_nonzero(arrays.present) == 2
    assert facts.arm is None
    assert not facts.parcellation
    assert not arrays.masks.any()
    assert not arrays.parcellation.any()


def test_a_brain_mask_takes_the_skull_off(trial: Path) -> None:
    path = bids.path_of(trial, "sub-02", "w048", "brain_mask")
    geometry = bids.Geometry()
    brain = np.zeros(geometry.shape, np.uint8)
    brain[2:7, 6:15, 4:10] = 1
    bids.write_volume(path, brain, geometry)
    facts, arrays = prepared(trial)
    assert (arrays.flair > -1).any(axis=(0, 1, 2)).sum() == 6
    kept = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, apply_brain_mask=False)
    _, arrays = prepared(trial, settings=kept)
    assert (arrays.flair > -1).any(axis=(0, 1, 2)).sum() > 6
    assert path.relative_to(trial).as_posix() in facts.digests


def test_another_trial_needs_other_patterns_and_no_code(trial: Path) -> None:
    for path in sorted(trial.rglob("*ses-w*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.replace("ses-w048", "ses-M12")))
    layout = TrialLayout(sessions=("w000", "M12", "w096"), arm_column="trial")
    settings = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, layout=layout)
    (subject, _) = read_trial(trial, layout)
    facts, arrays = prepare(subject, trial, settings=settings, arms=("OPERA",))
    assert facts.arm == "OPERA"
    assert arrays.present[1].all()
