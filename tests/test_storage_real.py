"""Two real patients with the gaps of real data, where their images lie beside the project."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from storage.bids import Subject, read_trial
from storage.grid import to_source_grid
from storage.layout import CHANNELS
from storage.prepare import prepare
from storage.settings import StoreSettings

ROOT = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "ljubljana"
SETTINGS = StoreSettings((15, 64, 64), (3.0, 3.0, 3.0), resample=True)
FINE = StoreSettings((15, 256, 256), (3.0, 1.0, 1.0), resample=True)

pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"the real patients are not at {ROOT} (their images stay outside)"
)


@pytest.fixture(params=["sub-lj01", "sub-lj03"])
def subject(request: pytest.FixtureRequest) -> Subject:
    (found,) = (s for s in read_trial(ROOT, SETTINGS.layout) if s.name == request.param)
    return found


def test_a_real_patient_becomes_a_case_with_gaps(subject: Subject) -> None:
    facts, arrays = prepare(subject, ROOT, settings=SETTINGS, arms=("placebo",))
    assert facts.arm is None
    assert not facts.parcellation
    present = [CHANNELS[c] for k, c in np.argwhere(arrays.present) if k == 1]
    assert present == ["flair", "net2"]
    head = arrays.flair[1] > -1
    margin = [head.any(axis=other).nonzero()[0] for other in ((0, 2), (0, 1))]
    assert all(rows.min() >= 3 and rows.max() <= 60 for rows in margin), "brain not in the field"
    assert 0.25 < head.mean() < 0.6
    assert np.corrcoef(arrays.flair[0].ravel(), arrays.flair[1].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("settings", "dice"), [(SETTINGS, 0.5), (FINE, 0.85)])
def test_lesions_return_to_the_patients_own_grid(
    subject: Subject, settings: StoreSettings, dice: float
) -> None:
    facts, arrays = prepare(subject, ROOT, settings=settings, arms=("placebo",))
    back = to_source_grid(arrays.masks[1, 2], facts.grid, order=0)
    name = f"{subject.name}_ses-w048"
    flair = nib.load(ROOT / subject.name / "ses-w048/anat" / f"{name}_FLAIR.nii.gz")
    folder = ROOT / "derivatives/lesions" / subject.name / "ses-w048/anat"
    truth = nib.load(folder / f"{name}_space-orig_label-L_desc-NET2_mask.nii.gz")
    np.testing.assert_array_equal(back.affine, flair.affine)

    slab = np.ones(settings.slab, bool)
    inside = np.asarray(to_source_grid(slab, facts.grid, order=0).dataobj)
    there, here = np.asarray(truth.dataobj) * inside, np.asarray(back.dataobj)
    overlap = 2 * np.count_nonzero(there & here) / (there.sum() + here.sum())
    assert overlap > dice
