"""A trial full of bad input: each kind is refused with its own sentence, the rest is converted."""

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
    CLAIMS,
    FILES,
    GOOD,
    HOSTILE,
    Hostile,
    name_of,
    write_hostile_trial,
)
from tests.support.corruptions import as_nobody

SETTINGS = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, cases_per_shard=32)
BOMBS = {"16 TB of voxels", "1 GB in some kB", "megabytes after the voxels"}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    write_hostile_trial(root)
    return root


@pytest.fixture(scope="module")
def subjects(trial: Path) -> dict[str, TrialSubject]:
    return {subject.name: subject for subject in scan_trial(trial, SETTINGS.layout)}


def test_there_are_kinds_enough() -> None:
    assert len({entry.what for entry in HOSTILE}) == len(HOSTILE) >= 40


@pytest.mark.parametrize("place", range(len(HOSTILE)), ids=lambda place: HOSTILE[place].what)
def test_bad_input_is_refused_with_its_own_sentence(
    trial: Path, subjects: dict[str, TrialSubject], place: int
) -> None:
    entry: Hostile = HOSTILE[place]
    with pytest.raises(CaseError) as caught:
        preprocess_subject(subjects[name_of(place)], trial, settings=SETTINGS, arms=bids.ARMS)
    refusal = caught.value.refusal
    assert (refusal.subject, refusal.kind) == (name_of(place), entry.kind)
    for words in entry.words:
        assert words in refusal.reason
    assert refusal.reason.startswith("expected ")
    if entry in FILES or entry in CLAIMS:
        assert refusal.session in str(refusal)
        assert refusal.path.startswith(str(trial))


@pytest.mark.parametrize("what", sorted(BOMBS))
def test_a_bomb_takes_no_memory(trial: Path, subjects: dict[str, TrialSubject], what: str) -> None:
    place = next(place for place, entry in enumerate(HOSTILE) if entry.what == what)
    tracemalloc.start()
    with pytest.raises(CaseError):
        preprocess_subject(subjects[name_of(place)], trial, settings=SETTINGS, arms=bids.ARMS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_no_file_stays_open(trial: Path, subjects: dict[str, TrialSubject]) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for subject in subjects.values():
        if subject.name not in GOOD:
            with pytest.raises(CaseError):
                preprocess_subject(subject, trial, settings=SETTINGS, arms=bids.ARMS)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    bids.write_trial(tmp_path, 1)
    bids.path_of(tmp_path, "sub-01", "w000", "flair").chmod(0)
    (subject,) = scan_trial(tmp_path, SETTINGS.layout)
    with as_nobody(tmp_path), pytest.raises(CaseError) as caught:
        preprocess_subject(subject, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    assert "expected a whole NIfTI file, got PermissionError" in caught.value.refusal.reason


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_rest_of_the_trial_converts_all_the_same(trial: Path, tmp_path: Path) -> None:
    store = convert(
        plan_conversion(trial, tmp_path / "store", settings=SETTINGS, arms=bids.ARMS, seed=0)
    )
    assert tuple(case.subject for case in store.cases) == GOOD
    assert {refusal.subject for refusal in store.table.excluded} == {
        name_of(place) for place in range(len(HOSTILE))
    }
    lines = (store.path / "excluded.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(HOSTILE)
    assert all(line.count("\t") == 4 for line in lines)


def table(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def rewrite(root: Path) -> None:
        path = root / "participants.tsv"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def no_trial(root: Path) -> None:
    root.rename(root.with_name("moved"))


def table_is_a_folder(root: Path) -> None:
    (root / "participants.tsv").unlink()
    (root / "participants.tsv").mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_trial, "expected the folder of a trial, got none there"),
        (lambda root: (root / "participants.tsv").unlink(), "expected the trial's table"),
        (table_is_a_folder, "expected the trial's table of participants, got none there"),
        (table(lambda _: b""), "one of them participant_id, got an empty file"),
        (table(lambda t: t.replace(b"participant_id", b"id")), "participant_id, got ['id', 'age'"),
        (table(lambda t: t.replace(b"\t", b",")), "set apart by tabs, one of them participant_id"),
        (table(lambda t: t.replace(b"OPERA", b"op\xe9ra")), "UTF-8 text, got the byte 0xe9; save"),
        (table(lambda t: t.decode().encode("utf-16")), "expected UTF-8 text, got the byte 0xff"),
        (table(lambda t: t.replace(b"edss", b"age")), "each column once, got age again"),
    ],
)
def test_a_trial_without_a_table_that_can_be_read_is_refused_whole(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    root = tmp_path / "trial"
    bids.write_participants(root, {"sub-01": "placebo"})
    harm(root)
    with pytest.raises(StorageError) as caught:
        scan_trial(root, TrialLayout())
    assert words in str(caught.value)
    assert str(root) in str(caught.value)


def test_a_row_without_a_name_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    bids.write_trial(tmp_path, 1)
    table(lambda t: t + b"\t44\tM\tn/a\tavonex\tOPERA\n")(tmp_path)
    nameless, named = scan_trial(tmp_path, TrialLayout())
    with pytest.raises(CaseError, match="expected a participant_id, got none in a row of parti"):
        preprocess_subject(nameless, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    preprocess_subject(named, tmp_path, settings=SETTINGS, arms=bids.ARMS)


def test_what_editors_and_systems_leave_behind_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows line ends, a byte order mark, spaces, quotes, sidecars and macOS's own files."""
    bids.write_trial(tmp_path, 2)
    table(lambda t: b"\xef\xbb\xbf" + t.replace(b"\n", b"\r\n"))(tmp_path)
    table(lambda t: t.replace(b"\tplacebo\t", b"\t placebo \t").replace(b"F\t", b'"F\t'))(tmp_path)
    flair = bids.path_of(tmp_path, "sub-01", "w048", "flair")
    flair.with_name("._" + flair.name).write_bytes(b"\0\5\x16\7")
    flair.with_name(flair.name.replace(".nii.gz", ".json")).write_text('{"EchoTime": "none"}')
    first, second = scan_trial(tmp_path, TrialLayout())
    facts, _ = preprocess_subject(first, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    assert (facts.arm, facts.covariates["sex"]) == ("placebo", '"F')
    preprocess_subject(second, tmp_path, settings=SETTINGS, arms=bids.ARMS)
    assert not caplog.records


def test_a_table_without_arms_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bids.write_trial(tmp_path, 1)
    scan_trial(tmp_path, TrialLayout(arm_column="tratment_arm"))
    assert "no column tratment_arm, so that no arm is known" in caplog.text
