"""Convert trials that are not BIDS with a mapping file and no code."""

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

ROOT = Path(__file__).resolve().parents[3]
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
PATIENTS = ("PAT-007/12", "PAT-007/13")  # identifiers of a site, with a slash in the table


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """Write the files of a BIDS trial of two subjects in the folders of another site."""
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


def write_mapping(trial: Path, **changes: Any) -> Path:
    path = trial / "mapping.yaml"
    path.write_text(yaml.safe_dump(MAPPING | changes))
    return path


def test_mapped_trial_gives_the_same_cases_as_bids(
    trial: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bids_root = tmp_path_factory.mktemp("bids")
    bids.write_trial(bids_root, 2)
    plain = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False)
    mapped = settings()
    for mapped_subject, bids_subject in zip(
        scan_trial(trial, mapped.layout), scan_trial(bids_root, plain.layout), strict=True
    ):
        metadata, arrays = preprocess_subject(
            mapped_subject, trial, settings=mapped, arms=bids.ARMS
        )
        _, expected = preprocess_subject(bids_subject, bids_root, settings=plain, arms=bids.ARMS)
        for name, array in vars(expected).items():
            np.testing.assert_array_equal(getattr(arrays, name), array)
    assert metadata.subject == "sub-PAT00713"
    assert (metadata.arm, metadata.trial, metadata.covariates) == ("placebo", None, {"age": None})


def test_mapping_file_sets_the_layout_of_a_configuration(trial: Path) -> None:
    config = load_config(DEMO, ["store.slab=[5, 12, 16]"], mapping=write_mapping(trial))
    assert config.store.layout == settings().layout
    assert config.store.slab == (5, 12, 16)
    first, _ = scan_trial(trial, config.store.layout)
    metadata, _ = preprocess_subject(first, trial, settings=settings(), arms=config.arms)
    assert (metadata.subject, metadata.arm, metadata.trial) == ("sub-PAT00712", "avonex", "A; B")
    assert "scans/PAT-007_12/month 12/lesions/new-lesions.nii.gz" in metadata.digests


def test_mapping_in_the_trial_guide_is_valid(tmp_path: Path) -> None:
    guide = (ROOT / "storage" / "TRIAL_GUIDE.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", guide, re.S)
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
        ({"sessions": ["a", "b", "b"]}, "sessions: expected three different labels"),
        ({"separator": "tab"}, "separator: expected one character, got 'tab'"),
    ],
)  # fmt: skip
def test_invalid_mapping_is_refused(trial: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, mapping=write_mapping(trial, **changes))
    assert words in str(caught.value)


def test_mapping_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text("flair: [")
    with pytest.raises(ConfigError, match=r"mapping\.yaml: expected YAML, got"):
        load_config(DEMO, mapping=tmp_path / "mapping.yaml")


def test_trial_without_a_table_has_unknown_arms(trial: Path) -> None:
    (trial / "clinical.csv").unlink()
    with pytest.raises(StorageError, match=r"clinical\.csv: expected the trial's table"):
        scan_trial(trial, settings().layout)
    unlisted = settings(participants=None)
    subjects = scan_trial(trial, unlisted.layout)
    assert [subject.name for subject in subjects] == ["sub-PAT00712", "sub-PAT00713"]
    metadata, _ = preprocess_subject(subjects[0], trial, settings=unlisted, arms=bids.ARMS)
    assert (metadata.arm, metadata.trial, metadata.covariates) == (None, None, {})


def test_patients_whose_names_differ_only_in_punctuation_are_excluded(trial: Path) -> None:
    (trial / "scans" / "PAT_00712").mkdir()
    table = trial / "clinical.csv"
    table.write_text(table.read_text() + "PAT 00713;placebo;;\n")
    first, second = scan_trial(trial, settings().layout)
    with pytest.raises(CaseError, match="letters and digits, got files of 'PAT-007_12' and 'PAT_"):
        preprocess_subject(first, trial, settings=settings(), arms=bids.ARMS)
    with pytest.raises(CaseError, match=r"expected one row in clinical\.csv, got 2"):
        preprocess_subject(second, trial, settings=settings(), arms=bids.ARMS)


def test_folder_without_matching_files_is_refused(tmp_path: Path) -> None:
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
def test_pattern_extracts_the_subject_of_a_path(
    tmp_path: Path, pattern: str, path: str, subject: str | None
) -> None:
    assert match_subject(path, pattern, session="w1") == subject
