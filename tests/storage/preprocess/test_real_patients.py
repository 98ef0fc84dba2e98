"""Convert two real patients with missing inputs, if their images lie beside the project."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesioncast.jobs import convert as convert_job
from lesioncast.jobs import qc as qc_job
from storage import open_store
from storage.layout import CHANNELS
from storage.preprocess.grid import to_source_grid
from storage.preprocess.prepare import preprocess_subject
from storage.settings import StoreSettings
from storage.trial.dataset import TrialSubject, scan_trial

ROOT = Path(__file__).resolve().parents[4] / "shared" / "data" / "ljubljana"
DEMO = Path(__file__).resolve().parents[3] / "jobs" / "configs" / "demo.yaml"
SETTINGS = StoreSettings((15, 64, 64), (3.0, 3.0, 3.0), resample=True)
FINE = StoreSettings((15, 256, 256), (3.0, 1.0, 1.0), resample=True)

pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"the images of real patients are not at {ROOT}"
)


@pytest.fixture(params=["sub-lj01", "sub-lj03"])
def subject(request: pytest.FixtureRequest) -> TrialSubject:
    (found,) = (s for s in scan_trial(ROOT, SETTINGS.layout) if s.name == request.param)
    return found


def test_real_patient_becomes_a_case_with_missing_inputs(subject: TrialSubject) -> None:
    metadata, arrays = preprocess_subject(subject, ROOT, settings=SETTINGS, arms=("placebo",))
    assert metadata.arm is None
    assert not metadata.parcellation
    present = [CHANNELS[c] for k, c in np.argwhere(arrays.present) if k == 1]
    assert present == ["flair", "net2"]
    head = arrays.flair[1] > -1
    margin = [head.any(axis=other).nonzero()[0] for other in ((0, 2), (0, 1))]
    assert all(rows.min() >= 3 and rows.max() <= 60 for rows in margin), "brain not in the field"
    assert 0.25 < head.mean() < 0.6
    assert np.corrcoef(arrays.flair[0].ravel(), arrays.flair[1].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("settings", "dice"), [(SETTINGS, 0.5), (FINE, 0.85)])
def test_lesions_are_resampled_back_to_the_patients_grid(
    subject: TrialSubject, settings: StoreSettings, dice: float
) -> None:
    metadata, arrays = preprocess_subject(subject, ROOT, settings=settings, arms=("placebo",))
    back = to_source_grid(arrays.masks[1, 2], metadata.grid, order=0)
    name = f"{subject.name}_ses-w048"
    flair = nib.load(ROOT / subject.name / "ses-w048/anat" / f"{name}_FLAIR.nii.gz")
    folder = ROOT / "derivatives/lesions" / subject.name / "ses-w048/anat"
    truth = nib.load(folder / f"{name}_space-orig_label-L_desc-NET2_mask.nii.gz")
    np.testing.assert_array_equal(back.affine, flair.affine)

    slab = np.ones(settings.slab, bool)
    inside = np.asarray(to_source_grid(slab, metadata.grid, order=0).dataobj)
    expected, actual = np.asarray(truth.dataobj) * inside, np.asarray(back.dataobj)
    overlap = 2 * np.count_nonzero(expected & actual) / (expected.sum() + actual.sum())
    assert overlap > dice


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_patients_are_converted_and_pass_quality_control(tmp_path: Path) -> None:
    """Convert as BIDS and through a mapping file, from the same scans under other names."""
    flags = ["--config", str(DEMO), "--set", "store.resample=true"]
    bids, mapped = tmp_path / "bids.zarr", tmp_path / "mapped.zarr"
    assert convert_job.main([*flags, "--bids", str(ROOT), "--store", str(bids)]) == 0
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(
        'flair: "{subject}_{session}.nii.gz"\nnet2: "{subject}_{session}_new.nii.gz"\n'
        'brain_mask: "{subject}_brain.nii.gz"\nsessions: [study1, study2, none]\n'
    )
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "participants.tsv").symlink_to(ROOT / "participants.tsv")
    for path in ROOT.rglob("*.nii.gz"):
        name = path.name.removeprefix("sub-").replace("ses-w000", "study1")
        name = name.replace("ses-w048", "study2").replace("_FLAIR", "")
        name = name.replace("_space-orig_label-L_desc-NET2_mask", "_new")
        name = name.replace("_study2_space-orig_desc-brain_mask", "_brain")
        (tmp_path / "trial" / name).symlink_to(path)
    paths = ["--bids", str(tmp_path / "trial"), "--store", str(mapped)]
    assert convert_job.main([*flags, *paths, "--mapping", str(mapping)]) == 0
    for one, other in zip(open_store(bids).cases, open_store(mapped).cases, strict=True):
        assert one.subject == other.subject
        assert sorted(one.digests.values()) == sorted(other.digests.values())
    assert qc_job.main([*flags, "--store", str(mapped), "--out", str(tmp_path)]) == 0
    head, *rows = (line.split("\t") for line in (tmp_path / "qc.tsv").read_text().splitlines())
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        assert cells["flags"] == "n/a"
        assert (cells["orientation"], cells["none_low"]) == ("LPS", "n/a")
        assert 2 < float(cells["study2_net2_ml"]) < 6
