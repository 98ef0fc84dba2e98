"""Exclude each kind of corrupt input with its own reason, and convert the rest of a trial."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import CaseError, StorageError
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.preprocess.prepare import preprocess_subject
from storage.settings import StoreSettings, TrialLayout
from storage.trial.dataset import TrialSubject, scan_trial
from tests.support import bids
from tests.support.corrupt_trials import (
    CORRUPTIONS,
    FILES,
    GOOD_SUBJECTS,
    HEADERS,
    Corruption,
    subject_for,
    write_corrupt_trial,
)
from tests.support.corruptions import as_nobody

SETTINGS = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, cases_per_shard=32)
BOMBS = {"16 TB of voxels", "1 GB in some kB", "megabytes after the voxels"}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corrupt")
    write_corrupt_trial(root)
    return root


@pytest.fixture(scope="module")
def subjects(trial: Path) -> dict[str, TrialSubject]:
    return {subject.name: subject for subject in scan_trial(trial, SETTINGS.layout)}


def test_at_least_forty_kinds_of_corruption_are_covered() -> None:
    assert len({entry.name for entry in CORRUPTIONS}) == len(CORRUPTIONS) >= 40


@pytest.mark.parametrize(
    "index", range(len(CORRUPTIONS)), ids=lambda index: CORRUPTIONS[index].name
)
def test_corrupt_input_is_excluded_with_its_own_reason(
    trial: Path, subjects: dict[str, TrialSubject], index: int
) -> None:
    entry: Corruption = CORRUPTIONS[index]
    with pytest.raises(CaseError) as caught:
        preprocess_subject(subjects[subject_for(index)], trial, settings=SETTINGS, arms=bids.ARMS)
    exclusion = caught.value.exclusion
    assert (exclusion.subject, exclusion.kind) == (subject_for(index), entry.kind)
    for words in entry.words:
        assert words in exclusion.reason
    assert exclusion.reason.startswith("expected ")
    if entry in FILES or entry in HEADERS:
        assert exclusion.session in str(exclusion)
        assert exclusion.path.startswith(str(trial))


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_decompression_bomb_needs_little_memory(
    trial: Path, subjects: dict[str, TrialSubject], name: str
) -> None:
    index = next(index for index, entry in enumerate(CORRUPTIONS) if entry.name == name)
    tracemalloc.start()
    with pytest.raises(CaseError):
        preprocess_subject(subjects[subject_for(index)], trial, settings=SETTINGS, arms=bids.ARMS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_no_file_stays_open(trial: Path, subjects: dict[str, TrialSubject]) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for subject in subjects.values():
        if subject.name not in GOOD_SUBJECTS:
            with pytest.raises(CaseError):
                preprocess_subject(subject, trial, settings=SETTINGS, arms=bids.ARMS)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_file_without_read_permission_is_excluded(tmp_path: Path) -> None:
    bids.write_trial(tmp_path, 1)
    bids.path_of(tmp_path, "sub-01", "w000", "flair").chmod(0)
    (subject,) = scan_trial(tmp_path, SETTINGS.layout)
    with as_nobody(tmp_path), pytest.raises(CaseError) as caught:
        preprocess_subject(subject, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    assert "expected a whole NIfTI file, got PermissionError" in caught.value.exclusion.reason


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_rest_of_the_trial_is_converted(trial: Path, tmp_path: Path) -> None:
    store = convert(
        plan_conversion(trial, tmp_path / "store", settings=SETTINGS, arms=bids.ARMS, seed=0)
    )
    assert tuple(case.subject for case in store.cases) == GOOD_SUBJECTS
    assert {exclusion.subject for exclusion in store.table.excluded} == {
        subject_for(index) for index in range(len(CORRUPTIONS))
    }
    lines = (store.path / "excluded.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(CORRUPTIONS)
    assert all(line.count("\t") == 4 for line in lines)


def rewrite_table(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        path = root / "participants.tsv"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def move_trial(root: Path) -> None:
    root.rename(root.with_name("moved"))


def replace_table_by_folder(root: Path) -> None:
    (root / "participants.tsv").unlink()
    (root / "participants.tsv").mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (move_trial, "expected the folder of a trial, got no such folder"),
        (lambda root: (root / "participants.tsv").unlink(), "expected the trial's table"),
        (replace_table_by_folder, "expected the trial's table of participants, got no such file"),
        (rewrite_table(lambda _: b""), "one of them participant_id, got an empty file"),
        (
            rewrite_table(lambda t: t.replace(b"participant_id", b"id")),
            "participant_id, got ['id', 'age'",
        ),
        (
            rewrite_table(lambda t: t.replace(b"\t", b",")),
            "separated by tabs, one of them participant_id",
        ),
        (
            rewrite_table(lambda t: t.replace(b"OPERA", b"op\xe9ra")),
            "UTF-8 text, got the byte 0xe9; save",
        ),
        (
            rewrite_table(lambda t: t.decode().encode("utf-16")),
            "expected UTF-8 text, got the byte 0xff",
        ),
        (rewrite_table(lambda t: t.replace(b"edss", b"age")), "each column once, got age again"),
    ],
)
def test_trial_with_unreadable_table_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    root = tmp_path / "trial"
    bids.write_participants(root, {"sub-01": "placebo"})
    harm(root)
    with pytest.raises(StorageError) as caught:
        scan_trial(root, TrialLayout())
    assert words in str(caught.value)
    assert str(root) in str(caught.value)


def test_row_without_a_name_is_excluded_and_others_are_kept(tmp_path: Path) -> None:
    bids.write_trial(tmp_path, 1)
    rewrite_table(lambda t: t + b"\t44\tM\tn/a\tavonex\tOPERA\n")(tmp_path)
    nameless, named = scan_trial(tmp_path, TrialLayout())
    with pytest.raises(CaseError, match="expected a participant_id, got none in a row of parti"):
        preprocess_subject(nameless, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    preprocess_subject(named, tmp_path, settings=SETTINGS, arms=bids.ARMS)


def test_leftovers_of_editors_and_operating_systems_are_harmless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows line ends, byte order mark, spaces, quotes, sidecars and macOS's own files."""
    bids.write_trial(tmp_path, 2)
    rewrite_table(lambda t: b"\xef\xbb\xbf" + t.replace(b"\n", b"\r\n"))(tmp_path)
    rewrite_table(lambda t: t.replace(b"\tplacebo\t", b"\t placebo \t").replace(b"F\t", b'"F\t'))(
        tmp_path
    )
    flair = bids.path_of(tmp_path, "sub-01", "w048", "flair")
    flair.with_name("._" + flair.name).write_bytes(b"\0\5\x16\7")
    flair.with_name(flair.name.replace(".nii.gz", ".json")).write_text('{"EchoTime": "none"}')
    first, second = scan_trial(tmp_path, TrialLayout())
    metadata, _ = preprocess_subject(first, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    assert (metadata.arm, metadata.covariates["sex"]) == ("placebo", '"F')
    preprocess_subject(second, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    assert not caplog.records


def test_table_without_arm_column_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bids.write_trial(tmp_path, 1)
    scan_trial(tmp_path, TrialLayout(arm_column="tratment_arm"))
    assert "no column tratment_arm; all arms are unknown" in caplog.text
