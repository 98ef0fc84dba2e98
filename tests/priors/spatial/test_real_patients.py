"""The spatial prior of a simulated trial on two real patients, if they lie beside the project.

Real patients lie outside what the prior was fitted to, so their maps need not be good, but they
must stay in the brain and out of the fluid, and follow the lesions that are shown.
"""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from lesioncast.priors.spatial.fit import SpatialFitSettings, fit_spatial_prior
from lesioncast.priors.spatial.inputs import SpatialInputs
from lesioncast.priors.spatial.prior import SpatialPrior
from storage.preprocess.grid import to_source_grid
from storage.preprocess.prepare import CaseMetadata, preprocess_subject
from storage.settings import StoreSettings
from storage.trial.dataset import scan_trial
from tests.priors.spatial.simulated_cases import SLAB, SPACING, simulate_cases

ROOT = Path(__file__).resolve().parents[4] / "shared" / "data" / "ljubljana"
SETTINGS = StoreSettings(SLAB, SPACING, resample=True)
PATIENTS = ("sub-lj01", "sub-lj03")

real_images = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"the images of real patients are not at {ROOT}"
)
pytestmark = [pytest.mark.slow, real_images]


@pytest.fixture(scope="module")
def prior() -> SpatialPrior:
    """Return a prior fitted to few simulated patients."""
    settings = SpatialFitSettings(cases=50, controls=200, classifier_cases=50)
    return fit_spatial_prior(simulate_cases(50, seed=11), settings, seed=0)


def real_patient(name: str) -> tuple[CaseMetadata, SpatialInputs]:
    """Convert a real patient; the store holds both FLAIR and the new lesions of w048."""
    (subject,) = (one for one in scan_trial(ROOT, SETTINGS.layout) if one.name == name)
    metadata, arrays = preprocess_subject(subject, ROOT, settings=SETTINGS, arms=("placebo",))
    channels = {
        "w000/flair": arrays.flair[0].astype(np.float32),
        "w048/flair": arrays.flair[1].astype(np.float32),
        "w048/net2": np.where(arrays.masks[1, 2], 1, -1).astype(np.float32),
    }
    return metadata, SpatialInputs(channels, SPACING)


@pytest.mark.parametrize("name", PATIENTS)
@pytest.mark.parametrize("masks", [True, False])
def test_lesions_are_expected_in_the_brain_and_not_in_fluid(
    prior: SpatialPrior, name: str, masks: bool
) -> None:
    metadata, inputs = real_patient(name)
    if not masks:
        channels = {key: inputs.channels[key] for key in ("w000/flair", "w048/flair")}
        inputs = replace(inputs, channels=channels)
    density = np.exp(prior.log_density(inputs), dtype=np.float64)
    folder = ROOT / "derivatives/brainmask" / name / "ses-w048/anat"
    mask = nib.load(folder / f"{name}_ses-w048_space-orig_desc-brain_mask.nii.gz")
    brain = np.asarray(mask.dataobj) > 0
    on_source = np.asarray(to_source_grid(density, metadata.grid, order=0).dataobj)
    assert on_source[~brain].sum() < 0.005 * on_source.sum()
    flair = inputs.channels["w048/flair"]
    head = flair > -1
    darkest, middle = np.percentile(flair[head], (2, 50))
    fluid = flair < (darkest + middle) / 2
    assert 0.02 < fluid[head].mean() < 0.35
    assert density[fluid].sum() < 0.05


def _distance_from(middle: tuple[int, ...]) -> np.ndarray:
    """Return the distance of each voxel from one voxel in mm, [s, h, w]."""
    offsets = np.indices(SLAB) - np.reshape(middle, (3, 1, 1, 1))
    return np.linalg.norm(offsets * np.reshape(SPACING, (3, 1, 1, 1)), axis=0)


def with_lesion(inputs: SpatialInputs, middle: tuple[int, ...], radius: float) -> SpatialInputs:
    """Add a bright T2 lesion around a voxel to every image and mask that the patient has."""
    lesion = _distance_from(middle) <= radius
    channels = dict(inputs.channels)
    for name, volume in channels.items():
        value = 0.8 if name.endswith("flair") else 1.0
        if not name.endswith("gad"):
            channels[name] = np.where(lesion, np.float32(value), volume)
    return replace(inputs, channels=channels)


@pytest.mark.parametrize("name", PATIENTS)
def test_added_lesions_move_the_map_towards_them(prior: SpatialPrior, name: str) -> None:
    _, inputs = real_patient(name)
    older = np.logical_or.reduce(
        [volume > 0 for name, volume in inputs.channels.items() if not name.endswith("flair")]
    )
    away = ndimage.distance_transform_edt(~older, sampling=SPACING) > 12
    away[:3], away[-3:] = False, False
    likely = np.where(away, prior.log_density(inputs), -np.inf)
    first = np.unravel_index(likely.argmax(), SLAB)
    around = _distance_from(first) < 15
    shares = [np.exp(prior.log_density(inputs))[around].sum()]
    for offset in ((0, 0, 0), (0, 3, 1), (1, -3, 0)):
        middle = tuple(int(a + b) for a, b in zip(first, offset, strict=True))
        inputs = with_lesion(inputs, middle, 4.5)
        shares.append(np.exp(prior.log_density(inputs))[around].sum())
    assert shares == sorted(shares), shares
    assert shares[-1] > 1.1 * shares[0], shares
