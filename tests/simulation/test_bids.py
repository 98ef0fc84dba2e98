"""The simulated trial on disk: valid BIDS, complete subjects, extensible, one setting a folder."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.errors import TrialError
from lesioncast.jobs import simulate
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from lesioncast.simulation.ground_truth import counterfactual_net2
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import simulate_subject
from storage import MASKS, SESSIONS, StoreSettings
from storage.preprocess.prepare import preprocess_subject
from storage.trial.dataset import scan_trial
from tests.support.bids_validator import validator_reports

SETTINGS = SimulationSettings(subjects=3, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=5)


def resized(subjects: int, seed: int = 5) -> SimulationSettings:
    return SimulationSettings(
        subjects=subjects, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=seed
    )


def write_trial(root: Path, settings: SimulationSettings) -> Path:
    write_subjects(root, settings, initialise_dataset(root, settings))
    finalise_dataset(root, settings)
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def participants(root: Path) -> list[dict[str, str]]:
    with (root / "participants.tsv").open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trial(tmp_path_factory.mktemp("trial") / "bids", SETTINGS)


@pytest.fixture
def copy(trial: Path, tmp_path: Path) -> Path:
    """Return a copy of the trial that a test may change."""
    return Path(shutil.copytree(trial, tmp_path / "bids"))


def test_the_official_validator_finds_no_error(trial: Path) -> None:
    reports = validator_reports(trial)
    assert len(reports) == 4, "raw, lesions, synthseg and truth"
    assert reports == dict.fromkeys(reports, [])


def test_files_hold_the_simulated_subject_in_ras_millimetres(trial: Path) -> None:
    subject = simulate_subject(SETTINGS, 1)
    stem = "ses-w048/anat/sub-0002_ses-w048"
    image = nib.load(trial / f"sub-0002/{stem}_FLAIR.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == SETTINGS.spacing[::-1]
    assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    centre = image.affine @ [*((np.array(image.shape) - 1) / 2), 1]
    assert np.allclose(centre[:3], 0), "the volume's middle is the world's origin"
    assert np.abs(image.get_fdata().T - subject.flair[1]).max() <= 0.5
    mask = nib.load(
        trial / f"derivatives/lesions/sub-0002/{stem}_space-orig_label-L_desc-NET2_mask.nii.gz"
    )
    assert np.array_equal(np.asarray(mask.dataobj).T, subject.net2("w048"))
    assert np.array_equal(mask.affine, image.affine)


@pytest.mark.parametrize("arm", PAPER_ARM_NAMES)
def test_truth_on_disk_gives_the_mask_under_every_arm(trial: Path, arm: str) -> None:
    subject = simulate_subject(SETTINGS, 2)
    for period in ("w048", "w096"):
        folder = trial / f"derivatives/truth/sub-0003/ses-{period}/anat"
        stem = folder / f"sub-0003_ses-{period}_space-orig_desc-ranks_dseg"
        ranks = np.asarray(nib.load(f"{stem}.nii.gz").dataobj).T
        count = json.loads(Path(f"{stem}.json").read_text())["LesionCounts"][arm]
        assert np.array_equal((ranks > 0) & (ranks <= count), subject.net2(period, arm))


def test_ground_truth_on_the_slab_contains_the_factual_mask(tmp_path: Path) -> None:
    trial = write_trial(tmp_path / "bids", resized(3, seed=7))
    settings = StoreSettings(slab=(15, 64, 56), spacing=(3.0, 3.0, 3.0), resample=False)
    active = False
    for subject in scan_trial(trial, settings.layout):
        facts, arrays = preprocess_subject(subject, trial, settings=settings, arms=PAPER_ARM_NAMES)
        masks = counterfactual_net2(trial, facts.subject, facts.grid, arms=PAPER_ARM_NAMES)
        assert facts.arm is not None
        factual = arrays.masks[SESSIONS.index("w096"), MASKS.index("net2")]
        assert np.array_equal(masks[PAPER_ARM_NAMES.index(facts.arm)], factual)
        active |= bool(factual.any())
    assert active, "no lesion was compared"


def test_participants_tsv_has_arm_trial_and_covariates(trial: Path) -> None:
    rows = participants(trial)
    assert [row["participant_id"] for row in rows] == ["sub-0001", "sub-0002", "sub-0003"]
    described = json.loads((trial / "participants.json").read_text())
    for index, row in enumerate(rows):
        subject = simulate_subject(SETTINGS, index)
        assert (row["treatment_arm"], row["trial"]) == (subject.arm, subject.trial)
        assert float(row["age"]) == subject.covariates["age"]
        assert row.keys() - {"participant_id"} == described.keys()


def test_order_and_blocks_change_no_byte(trial: Path, tmp_path: Path) -> None:
    for block in ([2], [1, 0]):
        initialise_dataset(tmp_path, SETTINGS)
        write_subjects(tmp_path, SETTINGS, block)
    finalise_dataset(tmp_path, SETTINGS)
    assert contents(tmp_path) == contents(trial)


def test_simulating_again_with_the_same_settings_changes_no_file(copy: Path) -> None:
    before = times(copy)
    write_trial(copy, SETTINGS)
    assert times(copy) == before


def test_more_subjects_add_the_missing_ones_only(copy: Path) -> None:
    before = times(copy)
    assert initialise_dataset(copy, resized(4)) == [3]
    write_trial(copy, resized(4))
    after = times(copy)
    assert {p for p in before if after[p] != before[p]} == {copy / "participants.tsv"}
    assert len(participants(copy)) == 4


def test_fewer_subjects_remove_none(copy: Path) -> None:
    write_trial(copy, resized(2))
    assert len(participants(copy)) == 3


def test_other_settings_raise_and_name_the_setting(copy: Path) -> None:
    with pytest.raises(TrialError, match=r"got one with seed 5 \(now 6\); choose another folder"):
        initialise_dataset(copy, resized(3, seed=6))


def test_a_folder_with_another_dataset_raises(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text('{"Name": "Real patients"}')
    with pytest.raises(TrialError, match=r"another BIDS dataset \(Real patients\)"):
        initialise_dataset(tmp_path, SETTINGS)
    (tmp_path / "dataset_description.json").rename(tmp_path / "letters.txt")
    with pytest.raises(TrialError, match=r"files without dataset_description.json"):
        initialise_dataset(tmp_path, SETTINGS)


def test_an_incomplete_subject_is_written_again(trial: Path, copy: Path) -> None:
    """A killed worker leaves derivatives without the raw folder, and its staging folder."""
    shutil.rmtree(copy / "sub-0002")
    (copy / "derivatives/lesions/sub-0002/ses-w000/anat").rename(copy / ".staging-left")
    write_trial(copy, SETTINGS)
    assert contents(copy) == contents(trial)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_job_writes_the_same_trial_on_ray(trial: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    simulation = {"subjects": 3, "shape": [21, 64, 64], "spacing": [3.0, 3.0, 3.0], "seed": 5}
    store = {"slab": [15, 64, 64], "spacing": [3.0, 3.0, 3.0], "resample": False}
    steps = {"steps": 1}
    config.write_text(
        yaml.safe_dump(
            {
                "name": "t",
                "simulation": simulation,
                "store": store,
                "pretrain": steps,
                "finetune": steps,
            }
        )
    )
    command = ["--config", str(config), "--bids", str(tmp_path / "bids")]
    assert simulate.main(command) == 0
    assert contents(tmp_path / "bids") == contents(trial)
    assert simulate.main([*command, "--set", "simulation.seed=6"]) == 1
