"""On a simulated trial, FLAIR without masks says who will be active, and the image decides."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.diffusion.controlnet import build_lesion_load_prior, lesion_burden, prior_features
from lesioncast.diffusion.lesion_load import LesionLoadPrior, lesion_load_class
from lesioncast.diffusion.settings.networks import CONDITION, ControlConfig, UNetConfig
from lesioncast.evaluation.input_ablation import draw_donors
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_of
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.scores import resampled_auc_within
from lesioncast.imaging.lesions import components
from lesioncast.priors.flair_reader.fit import READER_MASKS, ReaderCases
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import SimulatedSubject, simulate_subject
from lesioncast.training.lesion_load_prior.data import (
    LoadedCases,
    PriorTrainingData,
    fit_reader,
    with_readings,
)
from lesioncast.training.lesion_load_prior.dropout import PriorDropout
from lesioncast.training.lesion_load_prior.fit import fit_lesion_load_prior
from lesioncast.training.settings import DropoutRates
from storage.preprocess.prepare import preprocess_subject
from storage.settings import StoreSettings
from storage.trial.dataset import scan_trial

SPACING = (3.0, 3.0, 3.0)
SETTINGS = SimulationSettings(subjects=360, shape=(21, 64, 64), spacing=SPACING, seed=3301)
SLAB = slice(3, 18), slice(0, 64), slice(4, 60)
TRAIN, TEST = range(220), range(220, 360)
THRESHOLDS = (1, 10, 25, 60, 120, 240)
UNET = UNetConfig(arms=len(PAPER_ARM_NAMES), lesion_load_thresholds=THRESHOLDS)
CONTROL = ControlConfig(flair_reader_spacing=SPACING)
RATES = DropoutRates(arm=0.1, condition=0.1, channel=0.05, session=0.25)
WHITE_MATTER = (2, 41)
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ljubljana"

pytestmark = pytest.mark.slow


def scaled(flair: np.ndarray) -> np.ndarray:
    """Return FLAIR [s, h, w] in [-1, 1], background -1, as a store holds it."""
    return np.clip(2 * flair / np.percentile(flair[flair > 0], 99.5) - 1, -1, 1)


def images_of(subject: SimulatedSubject) -> dict[str, np.ndarray]:
    """Return the slab of each channel by its name, masks -1 / +1."""
    masks = {
        "w000/t2": subject.t2[0], "w000/gad": subject.gad[0], "w048/t2": subject.t2[1],
        "w048/gad": subject.gad[1], "w048/net2": subject.net2("w048"),
        "w096/net2": subject.net2("w096"),
    }  # fmt: skip
    images = {name: np.where(mask, 1.0, -1.0) for name, mask in masks.items()}
    images |= {f"{name}/flair": scaled(subject.flair[k]) for k, name in ((0, "w000"), (1, "w048"))}
    return {name: image[SLAB].astype(np.float32) for name, image in images.items()}


def load(indices: range) -> LoadedCases:
    """Simulate subjects and return what the prior reads of them."""
    data, reader_cases = [], []
    for index in indices:
        subject = simulate_subject(SETTINGS, index)
        images = images_of(subject)
        condition, masks = (
            torch.from_numpy(np.stack([images[name] for name in names]))[None]
            for names in (CONDITION, READER_MASKS)
        )
        outcome = torch.from_numpy(images["w096/net2"])[None]
        data.append(
            PriorTrainingData(
                burden=lesion_burden(condition, CONTROL.masks),
                covariates=torch.zeros(1, 0),
                arm=torch.tensor([PAPER_ARM_NAMES.index(subject.arm)]),
                lesion_load=lesion_load_class(outcome, THRESHOLDS),
                lesions=torch.tensor([float(components(outcome[0].numpy() > 0)[1])]),
                readings=torch.zeros(1, 1, 0),
            )
        )
        flair = condition[:, [CONDITION.index(f"{name}/flair") for name in ("w000", "w048")]]
        reader_cases.append(ReaderCases.of(flair, masks, SPACING))
    columns = zip(*(vars(one).values() for one in data), strict=True)
    return LoadedCases(PriorTrainingData(*map(torch.cat, columns)), ReaderCases.cat(reader_cases))


@dataclass(frozen=True)
class Trial:
    """Test cases, and priors that were fitted to the training cases with and without a reader."""

    reading: LesionLoadPrior
    blind: LesionLoadPrior
    test: LoadedCases


@pytest.fixture(scope="module")
def trial() -> Trial:
    train, test = load(TRAIN), load(TEST)
    priors = []
    for config in (CONTROL, ControlConfig()):
        torch.manual_seed(0)
        prior = build_lesion_load_prior(config, UNET, ())
        assert prior is not None
        data = fit_reader(prior, train, seed=0)
        fit_lesion_load_prior(prior, data, PriorDropout(RATES), seed=0)
        priors.append(prior)
    return Trial(*priors, test)


def probabilities(
    prior: LesionLoadPrior, cases: LoadedCases, shown: tuple[str, ...], donors: np.ndarray | None
) -> np.ndarray:
    """Return P(active) [n] from the channels `shown`, with images and masks of the `donors`."""
    data = with_readings(prior, cases)
    arm = data.arm
    if donors is not None:
        data = data.rows(torch.from_numpy(donors))
    visible = torch.tensor([name in shown for name in CONDITION])
    data = replace(data, burden=data.burden * visible[:, None])
    with torch.no_grad():
        return prior.expectations(data.patient_features(prior), arm).p_active.numpy()


def auc_within_arms(
    trial: Trial, prior: LesionLoadPrior, shown: tuple[str, ...], *, exchanged: bool = False
) -> Estimate:
    """Return the AUC of P(active) within arms on the test cases, with its interval."""
    arm = trial.test.data.arm.numpy()
    active = (trial.test.data.lesion_load > 0).numpy()
    donors = draw_donors(arm, seed=0) if exchanged else None
    p = probabilities(prior, trial.test, shown, donors)
    return estimate_of(
        lambda weights: resampled_auc_within(active, p, arm, weights),
        Bootstrap(500, 0).weights(len(arm)),
    )


FLAIR = ("w000/flair", "w048/flair")


def test_flair_alone_tells_who_will_be_active_within_an_arm(trial: Trial) -> None:
    reading = auc_within_arms(trial, trial.reading, FLAIR)
    blind = auc_within_arms(trial, trial.blind, FLAIR)
    assert reading.low > 0.58  # 0.5 is chance; with 1722 training cases it is above 0.7
    assert reading.value > blind.value + 0.1


def test_images_and_masks_of_another_patient_of_the_arm_are_chance(trial: Trial) -> None:
    for shown in (FLAIR, CONDITION):
        own = auc_within_arms(trial, trial.reading, shown)
        exchanged = auc_within_arms(trial, trial.reading, shown, exchanged=True)
        assert exchanged.low < 0.5 < exchanged.high
        assert own.low > exchanged.high - 0.05
        assert own.value > exchanged.value + 0.2


@pytest.mark.parametrize("without", [(), ("gad",), ("gad", "t2"), ("gad", "t2", "net2")])
@pytest.mark.parametrize("sessions", [("w000", "w048"), ("w000",)])
def test_mean_p_active_is_near_the_observed_share_whatever_is_missing(
    trial: Trial, without: tuple[str, ...], sessions: tuple[str, ...]
) -> None:
    shown = tuple(
        name for name in CONDITION
        if name.split("/")[0] in sessions and name.split("/")[1] not in without
    )  # fmt: skip
    p = probabilities(trial.reading, trial.test, shown, None)
    error = p - (trial.test.data.lesion_load > 0).numpy()
    # The offsets hold for the training cases, whose observed share has an error of its own.
    standard_error = error.std() * np.sqrt(1 / len(TRAIN) + 1 / len(TEST))
    assert abs(error.mean()) < 3 * standard_error


NEW, OLD = (1,), (0, 1)  # sessions that show a lesion


def with_lesions(flair: np.ndarray, places: np.ndarray, sessions: tuple[int, ...]) -> np.ndarray:
    """Return FLAIR [session, s, h, w] with a lesion at each of `places` [n, 3] at `sessions`.

    A lesion has a radius of 5 mm, a soft edge, and an excess of 0.4 over white matter, as in the
    simulated trial.
    """
    changed = flair.copy()
    for session in sessions:
        image = flair[session]
        head = image > -0.9
        white = np.median(image[head]) + 1
        for place in places:
            distance = np.linalg.norm(3.0 * (np.indices(image.shape).T - place), axis=-1).T
            excess = 0.4 * white / (1 + np.exp(distance - 5))
            brighter = np.maximum(changed[session], np.minimum(image + excess, 1))
            changed[session] = np.where(head, brighter, changed[session])
    return changed


def p_active_by_lesions(
    prior: LesionLoadPrior, flair: np.ndarray, inside: np.ndarray, sessions: tuple[int, ...]
) -> np.ndarray:
    """Return P(active) [step, arm] as lesions are added one by one at places of `inside`."""
    places = np.argwhere(inside)
    places = places[np.random.default_rng(0).choice(len(places), 8, replace=False)]
    steps = []
    for number in range(9):
        condition = np.zeros((1, len(CONDITION), *flair.shape[1:]), np.float32)
        condition[0, [0, 3]] = with_lesions(flair, places[:number], sessions)
        with torch.no_grad():
            patient = prior_features(prior, CONTROL.masks, torch.from_numpy(condition), None)
            steps.append(prior.expected_outcomes(patient).p_active.numpy())
    return np.array(steps)


@pytest.mark.parametrize(("sessions", "rise", "arms"), [(NEW, 0.1, 4), (OLD, 0.0, 6)])
def test_lesions_in_a_simulated_patient_raise_p_active_step_by_step(
    trial: Trial, sessions: tuple[int, ...], rise: float, arms: int
) -> None:
    quiet = int(np.argmin(with_readings(trial.reading, trial.test).readings[:, 3, 6].numpy()))
    subject = simulate_subject(SETTINGS, TEST[quiet])
    images = images_of(subject)
    flair = np.stack([images["w000/flair"], images["w048/flair"]])
    steps = p_active_by_lesions(
        trial.reading, flair, np.isin(subject.parcellation[SLAB], WHITE_MATTER), sessions
    )
    # Less than half a percentage point is what a lesion changes of the image's own scale.
    assert (np.diff(steps, axis=0) > -0.005).all()
    assert (steps[-1] > steps[0] + rise).sum() >= arms


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the images of real patients are not at {REAL}")
@pytest.mark.parametrize("sessions", [NEW, OLD])
def test_lesions_in_a_real_patient_raise_p_active_step_by_step(
    trial: Trial, sessions: tuple[int, ...]
) -> None:
    settings = StoreSettings((15, 64, 64), SPACING, resample=True)
    (patient,) = (one for one in scan_trial(REAL, settings.layout) if one.name == "sub-lj01")
    arrays = preprocess_subject(patient, REAL, settings=settings, arms=("placebo",))[1]
    flair = arrays.flair[:2].astype(np.float32)
    low, high = np.percentile(flair[0][flair[0] > -0.9], [30, 70])
    inside = (flair[0] > low) & (flair[0] < high)
    steps = p_active_by_lesions(trial.reading, flair, inside, sessions)
    assert (np.diff(steps, axis=0) > -0.005).all()
    assert (steps[-1] > steps[0]).all()
