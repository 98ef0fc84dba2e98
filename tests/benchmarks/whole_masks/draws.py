"""Draw the masks of each method for a case: the same lesion loads, four ways to place them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lesioncast.arrays import Floats, Ints, Mask
from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.continuous_batching import run_until_idle
from lesioncast.diffusion.lesion_load import lesion_load_class
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.evaluation.features.image_features import lesion_voxels
from lesioncast.evaluation.where.case_scores import ExactLaw
from lesioncast.evaluation.where.density import brain_of
from lesioncast.evaluation.where.mask_draws import StoredLesions, masks_without_networks
from lesioncast.evaluation.where.measurements import INDEPENDENT_VOXELS, STORED_LESIONS
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput, independent_seeds
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.lesions import components
from storage import Case, Store

VOXELS, STORED, NETWORKS = "independent voxels", "stored lesions", "networks"
PLACES, EXACT = "exact places, the prior's loads", "exact law"
REDRAWS = 16  # of the law with a given number of lesions, of which the nearest in size is kept
FIRST_REDRAW = 1000  # first seed of these; the law's own draws have the seeds below
Voxels = npt.NDArray[np.int32]
"""Flat indices of the lesion voxels of one mask."""
Drawn = tuple[Voxels, ...]
"""Masks of one case, one a seed."""


@dataclass(frozen=True)
class Patient:
    """What the draws of a case start from: its density, and the condition of each sample."""

    case: Case
    seeds: tuple[int, ...]
    #: Density of new-lesion voxels within the brain, [s, h, w]; the sum is 1.
    density: Floats
    #: Condition of each sample, with the lesion load class and voxels that its seed drew.
    conditions: tuple[SampleCondition, ...]

    @property
    def voxels(self) -> Ints:
        """Return the number of lesion voxels of each sample, 0 without lesions."""
        return np.array([one.voxels if one.lesion_load else 0 for one in self.conditions], np.int64)


def patient_of(
    bundle: Bundle,
    store: Store,
    case: Case,
    *,
    samples: int,
    observed: Mask | None = None,
    sessions: Sessions | None = None,
) -> Patient:
    """Return what the draws of a case start from, from the images of some sessions; None for all.

    With the `observed` mask [s, h, w] every sample has its lesion load in place of its seed's.
    """
    inputs = store_reader(store, bundle.config.model)(ModelInput(case.index, sessions))
    (encoding,) = PatientEncoder(bundle, device="cpu")(inputs)
    seeds = independent_seeds(0, case.subject, samples)
    assert encoding.log_density is not None
    if observed is None:
        conditions = bundle.model.sample_conditions(encoding, case.arm_index, seeds)
    else:
        thresholds = bundle.config.model.unet.lesion_load_thresholds
        load = lesion_load_class(2.0 * torch.from_numpy(observed)[None] - 1, thresholds)
        conditions = [
            SampleCondition(encoding, case.arm_index, int(load), float(observed.sum()))
        ] * samples
    density = encoding.log_density[0].double().exp().numpy() * brain_of(store.read(case.index))
    return Patient(case, seeds, density / density.sum(), tuple(conditions))


def draw_networks(
    bundle: Bundle, patients: Sequence[Patient], sampler: SamplerConfig
) -> list[Drawn]:
    """Return the networks' masks of some patients, which share forward passes."""
    conditions = [one for patient in patients for one in patient.conditions]
    seeds = [seed for patient in patients for seed in patient.seeds]
    batcher = bundle.model.batcher(
        sampler, spatial_shape=patients[0].density.shape, device=torch.device("cpu")
    )
    with torch.no_grad():
        x = run_until_idle(batcher, conditions, seeds)
    masks = [lesion_voxels(mask) for mask in (x[:, NET2] > 0).numpy()]
    per_patient = [len(patient.seeds) for patient in patients]
    ends = np.cumsum(per_patient)
    return [tuple(masks[end - size : end]) for end, size in zip(ends, per_patient, strict=True)]


def draw_simple(patient: Patient, stored: StoredLesions, law: ExactLaw | None) -> dict[str, Drawn]:
    """Return the masks of all methods without networks; those of the law where there is one."""
    voxels = patient.voxels
    rngs = [np.random.default_rng(seed) for seed in patient.seeds]
    masks = masks_without_networks(patient.density, stored, voxels.tolist(), rngs)
    drawn = {VOXELS: masks[INDEPENDENT_VOXELS], STORED: masks[STORED_LESIONS]}
    if law is not None:
        numbers = [components(mask)[1] for mask in drawn[STORED]]
        places = [
            redraw_like(law, k, number=numbers[k], voxels=voxels[k]) for k in range(len(voxels))
        ]
        drawn[PLACES] = np.stack(places)
        drawn[EXACT] = np.stack([law.redraw(k) for k in range(len(voxels))])
    return {key: tuple(lesion_voxels(mask) for mask in each) for key, each in drawn.items()}


def redraw_like(law: ExactLaw, sample: int, *, number: int, voxels: int) -> Mask:
    """Draw the places of a number of lesions, about `voxels` large in all.

    It is the draw of REDRAWS that is nearest in size: nearly the law given the amount.
    """
    seeds = FIRST_REDRAW + REDRAWS * sample + np.arange(REDRAWS)
    drawn = [law.redraw(int(seed), number=number) for seed in seeds]
    return min(drawn, key=lambda mask: abs(int(mask.sum()) - voxels))


@dataclass(frozen=True)
class Kept:
    """A folder of drawn masks, so that scores can be computed again without sampling."""

    folder: Path

    def path(self, case: Case, settings: object) -> Path:
        """Return the file of a case's masks that were drawn with `settings`."""
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        return self.folder / digest / f"{case.subject}.npz"

    def read(self, path: Path) -> dict[str, Drawn] | None:
        """Return the masks of each method; None if there are none yet."""
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            found: dict[str, dict[int, Voxels]] = {}
            for name in arrays.files:
                method, number = name.rsplit("/", 1)
                found.setdefault(method, {})[int(number)] = arrays[name]
        return {method: tuple(by[k] for k in sorted(by)) for method, by in found.items()}

    def write(self, path: Path, drawn: Mapping[str, Drawn]) -> None:
        """Write the masks of each method of one case."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{method}/{index}": voxels
            for method, masks in drawn.items()
            for index, voxels in enumerate(masks)
        }
        np.savez(path, **arrays)
