"""Trials that are not BIDS: one mapping file, and the same code."""

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from lesioncast.config import load_config
from lesioncast.errors import ConfigError
from storage import CaseError, StorageError
from storage.preprocess.prepare import preprocess_subject
from storage.settings import StoreSettings, TrialLayout
from storage.trial.dataset import scan_trial
from storage.trial.path_patterns import match_subject
from tests.support import bids

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "jobs" / "configs" / "demo.yaml"
SESSIONS = {"w000": "baseline", "w048": "month 12", "w096": "month 24"}
MAPPING: dict[str, Any] = {
    "sessions": list(SESSIONS.values()),
    "participants": "clinical.csv",
    "separator": ";",
    "subject_column": "ID",
    "arm_column": "Group",
    "trial_column": "Study",
    "arm_names": {"IFN": "avonex"},
    "flair": "scans/{subject}/{session}/flair.nii",
    "t2": "scans/{subject}/{session}/lesions/t2*.nii.gz",
    "gad": "scans/{subject}/{session}/lesions/gd*.nii.gz",
    "net2": "scans/{subject}/{session}/lesions/new*.nii.gz",
    "parcellation": "synthseg/{subject}.nii.gz",
    "brain_mask": "masks/**/{subject}_brain.nii.gz",
}
NAMES = {"t2": "t2_mask", "gad": "gd", "net2": "new-lesions"}
PATIENTS = ("PAT-007/12", "PAT-007/13")  # a site's identifiers: the table has them with a slash


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """The same files as a BIDS trial of two subjects has, where this site keeps them."""
    for seed, patient in enumerate(PATIENTS):
        folder = tmp_path / "scans" / patient.replace("/", "_")
        for (session, channel), data in bids.volumes(bids.Geometry(), seed).items():
            visit = folder / SESSIONS[session]
            path = {
                "flair": visit / "flair.nii",
                "parcellation": tmp_path / "synthseg" / f"{folder.name}.nii.gz",
            }.get(channel, visit / "lesions" / f"{NAMES.get(channel)}.nii.gz")
            bids.write_volume(path, data, bids.Geometry())
    table = '"ID";"Group";"Study";"age"\n"PAT-007/12";"IFN";"A; B";31\n"PAT-007/13";"placebo";;\n'
    (tmp_path / "clinical.csv").write_text(table)
    return tmp_path


def settings(**changes: Any) -> StoreSettings:
    layout = TrialLayout(**MAPPING | {"sessions": tuple(MAPPING["sessions"])} | changes)
    return StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, layout=layout)


def as_written(trial: Path, **changes: Any) -> Path:
    path = trial / "mapping.yaml"
    path.write_text(yaml.safe_dump(MAPPING | changes))
    return path


def test_a_folder_of_scans_becomes_the_cases_that_bids_would_give(
    trial: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    same = tmp_path_factory.mktemp("bids")
    bids.write_trial(same, 2)
    plain = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False)
    mapped = settings()
    for here, there in zip(
        scan_trial(trial, mapped.layout), scan_trial(same, plain.layout), strict=True
    ):
        facts, arrays = preprocess_subject(here, trial, settings=mapped, arms=bids.ARMS)
        _, expected = preprocess_subject(there, same, settings=plain, arms=bids.ARMS)
        for name, array in vars(expected).items():
            np.testing.assert_array_equal(getattr(arrays, name), array)
    assert facts.subject == "sub-PAT00713"
    assert (facts.arm, facts.trial, facts.covariates) == ("placebo", None, {"age": None})


def test_a_mapping_file_is_read_beside_a_configuration(trial: Path) -> None:
    config = load_config(DEMO, ["store.slab=[5, 12, 16]"], mapping=as_written(trial))
    assert config.store.layout == settings().layout
    assert config.store.slab == (5, 12, 16)
    first, _ = scan_trial(trial, config.store.layout)
    facts, _ = preprocess_subject(first, trial, settings=settings(), arms=config.arms)
    assert (facts.subject, facts.arm, facts.trial) == ("sub-PAT00712", "avonex", "A; B")
    assert "scans/PAT-007_12/month 12/lesions/new-lesions.nii.gz" in facts.digests


def test_the_mapping_in_the_readme_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "storage" / "README.md").read_text(), re.S)
    (tmp_path / "mapping.yaml").write_text(block)
    layout = load_config(DEMO, mapping=tmp_path / "mapping.yaml").store.layout
    assert layout.flair != TrialLayout().flair


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"flaire": "x"}, "mapping.yaml: unknown key flaire; nearest: flair"),
        ({"flair": "{sub}/{session}.nii"}, "flair: expected fields in (subject, session), got sub"),
        ({"t2": "t2/{subject}.nii"}, "t2: expected {session} in the pattern, got 't2/{subject}"),
        ({"brain_mask": "brain.nii"}, "brain_mask: expected {subject} in the pattern"),
        ({"net2": "../{subject}/{session}"}, "net2: expected a pattern below the trial's folder"),
        ({"sessions": ["a", "b"]}, "sessions.2: Field required"),
        ({"sessions": ["a", "b", "b"]}, "sessions: expected three labels that differ"),
        ({"separator": "tab"}, "separator: expected one character, got 'tab'"),
    ],
)  # fmt: skip
def test_a_mapping_that_cannot_be_meant_is_refused(
    trial: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, mapping=as_written(trial, **changes))
    assert words in str(caught.value)


def test_a_mapping_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text("flair: [")
    with pytest.raises(ConfigError, match=r"mapping\.yaml: expected YAML, got"):
        load_config(DEMO, mapping=tmp_path / "mapping.yaml")


def test_a_folder_without_a_table_is_taken_with_arms_unknown(trial: Path) -> None:
    (trial / "clinical.csv").unlink()
    with pytest.raises(StorageError, match=r"clinical\.csv: expected the trial's table"):
        scan_trial(trial, settings().layout)
    unlisted = settings(participants=None)
    subjects = scan_trial(trial, unlisted.layout)
    assert [subject.name for subject in subjects] == ["sub-PAT00712", "sub-PAT00713"]
    facts, _ = preprocess_subject(subjects[0], trial, settings=unlisted, arms=bids.ARMS)
    assert (facts.arm, facts.trial, facts.covariates) == (None, None, {})


def test_two_patients_whose_names_differ_in_punctuation_alone_are_refused(trial: Path) -> None:
    (trial / "scans" / "PAT_00712").mkdir()
    table = trial / "clinical.csv"
    table.write_text(table.read_text() + "PAT 00713;placebo;;\n")
    first, second = scan_trial(trial, settings().layout)
    with pytest.raises(CaseError, match="letters and digits, got files of 'PAT-007_12' and 'PAT_"):
        preprocess_subject(first, trial, settings=settings(), arms=bids.ARMS)
    with pytest.raises(CaseError, match=r"expected one row in clinical\.csv, got 2"):
        preprocess_subject(second, trial, settings=settings(), arms=bids.ARMS)


def test_a_folder_without_the_files_of_the_mapping_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "brain.nii")
    with pytest.raises(StorageError, match=r"expected files like scans/\{subject\}/\{session\}/"):
        scan_trial(tmp_path, settings(participants=None).layout)


@pytest.mark.parametrize(
    ("pattern", "path", "subject"),
    [
        ("{subject}/{session}.nii", "a b/w1.nii", "a b"),
        ("{subject}/{session}.nii", "a/b/w1.nii", None),
        ("{subject}/{session}.nii", "a/w10.nii", None),
        ("sub-{subject}/sub-{subject}_{session}*.nii*", "sub-1/sub-1_w1_FLAIR.nii.gz", "1"),
        ("sub-{subject}/sub-{subject}_{session}*.nii*", "sub-1/sub-12_w1_FLAIR.nii.gz", None),
        ("**/{subject}_{session}.nii", "P_1_w1.nii", "P_1"),
        ("**/{subject}_{session}.nii", "deep/er/P_1_w1.nii", "P_1"),
        ("{subject}_*_{session}.nii", "P_1_x_w1.nii", "P"),
        ("{subject}-{session}-[0-9][!x].n?i", "P-w1-7y.nii", "P"),
        ("{subject}-{session}-[0-9][!x].n?i", "P-w1-7x.nii", None),
        ("{subject}(a+b).{session}", "P(a+b).w1", "P"),
        ("{subject}(a+b).{session}", "P(aab).w1", None),
    ],
)
def test_a_pattern_names_the_subject_of_a_path(
    tmp_path: Path, pattern: str, path: str, subject: str | None
) -> None:
    assert match_subject(path, pattern, session="w1") == subject
