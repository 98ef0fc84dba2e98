"""Forecast the test cases from parts of their inputs, and from the images of another patient.

The prognostic prior reads a few numbers of each channel, which do not depend on the other channels,
and numbers read off FLAIR, which depend on the sessions that are shown. They are computed once for
each case and choice of sessions; a hidden channel has zeros, as where a patient lacks it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.controlnet import lesion_burden
from lesioncast.diffusion.lesion_load import LesionLoadPrior, mix_expectations
from lesioncast.evaluation.analysis.validity.reliance import (
    ALL_INPUTS,
    ARM_ALONE,
    BASELINE_FLAIR,
    OTHER_PATIENT,
    WITHOUT_COVARIATES,
    WITHOUT_GADOLINIUM,
    WITHOUT_MASKS,
    InputPredictions,
)
from lesioncast.evaluation.metrics.rng import RngStream
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput
from lesioncast.imaging.channels import BASELINE, MASKS, Channels, parse_channels
from storage import Case, Store


@dataclass(frozen=True)
class PriorInputs:
    """What the prior reads of n patients."""

    #: Lesion burden of each channel, [n, channel, 3]; zeros for a channel that is not shown.
    burden: npt.NDArray[np.float32]
    #: Encoded covariates, NaN if missing, [n, covariate].
    covariates: npt.NDArray[np.float32]
    #: Index of the arm received, [n].
    arm: Ints
    #: Numbers that each member's prior reads off FLAIR, for each choice of sessions,
    #: [n, member, choice, number].
    readings: npt.NDArray[np.float32]


Predict = Callable[[PriorInputs], tuple[Floats, Floats]]
"""Predicts P(active) and E[log(1 + n)] of each patient under the arm received, [n] each."""


def predict_from_parts(
    store: Store, cases: Sequence[Case], bundle: Bundle, *, seed: int
) -> tuple[InputPredictions, ...]:
    """Return the predictions of `cases` from each choice of inputs; empty for models that sample.

    Sampling each case once for each choice would cost more than the whole evaluation.
    """
    if not bundle.priors:
        return ()
    return tuple(
        predictions_by_inputs(
            partial(predict_with_priors, bundle.priors),
            read_prior_inputs(store, cases, bundle),
            parse_channels(bundle.config.model.control.condition),
            seed=seed,
        )
    )


def predict_with_priors(
    priors: Sequence[LesionLoadPrior], inputs: PriorInputs
) -> tuple[Floats, Floats]:
    """Return what the mixture of `priors` expects under the arm received (see `Predict`)."""
    burden, covariates = torch.from_numpy(inputs.burden), torch.from_numpy(inputs.covariates)
    arm = torch.from_numpy(inputs.arm)
    with torch.no_grad():
        by_member = [
            prior.probabilities(
                prior.patient_features(
                    burden, covariates, torch.from_numpy(inputs.readings[:, member])
                ),
                arm,
            )
            for member, prior in enumerate(priors)
        ]
        expected = mix_expectations(priors, by_member)
    return expected.p_active.numpy(), expected.log_lesions.numpy()


def read_prior_inputs(store: Store, cases: Sequence[Case], bundle: Bundle) -> PriorInputs:
    """Read what the priors of `bundle` read of each case."""
    model = bundle.config.model
    read = store_reader(store, model)

    def read_case(case: Case) -> tuple[npt.NDArray[np.float32], ...]:
        images, covariates, _ = read(ModelInput(case.index))
        condition = torch.from_numpy(images)[None]
        burden = lesion_burden(condition, model.control.masks)
        readings = torch.cat([prior.read(condition) for prior in bundle.priors])
        return burden[0].numpy(), covariates, readings.numpy()

    with ThreadPoolExecutor() as threads:
        burden, covariates, readings = zip(*threads.map(read_case, cases), strict=True)
    arm = np.array([case.arm_index for case in cases], np.int64)
    return PriorInputs(np.stack(burden), np.stack(covariates), arm, np.stack(readings))


def predictions_by_inputs(
    predict: Predict, patients: PriorInputs, channels: Channels, *, seed: int
) -> Iterator[InputPredictions]:
    """Yield the predictions from each choice of inputs, all inputs first.

    A choice that hides nothing of this model is left out. Patients whose arm has no second test
    case are left out where images are exchanged.
    """
    everyone = np.arange(len(patients.arm))
    yield _predictions(ALL_INPUTS, everyone, predict, patients)
    for name, hidden in _hidden_channels(channels):
        if hidden.any():
            yield _predictions(name, everyone, predict, hide_channels(patients, hidden))
    donors = draw_donors(patients.arm, seed=seed)
    exchanged = np.flatnonzero(donors >= 0)
    if len(exchanged):
        own = select_patients(patients, exchanged)
        others = replace(
            own,
            burden=patients.burden[donors[exchanged]],
            readings=patients.readings[donors[exchanged]],
        )
        yield _predictions(OTHER_PATIENT, exchanged, predict, others)
    blind = hide_channels(patients, np.ones(len(channels), bool))
    if patients.covariates.shape[1]:
        yield _predictions(WITHOUT_COVARIATES, everyone, predict, hide_covariates(patients))
    yield _predictions(ARM_ALONE, everyone, predict, hide_covariates(blind))


def _hidden_channels(channels: Channels) -> Iterator[tuple[str, Bools]]:
    """Yield the choices of inputs that hide channels, with True for each hidden one, [channel]."""
    kinds = np.array([kind for _, kind in channels])
    sessions = np.array([session for session, _ in channels])
    yield WITHOUT_GADOLINIUM, kinds == "gad"
    yield WITHOUT_MASKS, np.isin(kinds, MASKS)
    yield BASELINE_FLAIR, (kinds != "flair") | (sessions != BASELINE)


def _predictions(
    name: str, rows: Ints, predict: Predict, patients: PriorInputs
) -> InputPredictions:
    p_active, log_lesions = predict(patients)
    return InputPredictions(name, rows, p_active, log_lesions)


def hide_channels(patients: PriorInputs, hidden: Bools) -> PriorInputs:
    """Return the patients without the channels where `hidden` [channel] is True."""
    return replace(patients, burden=np.where(hidden[:, None], np.float32(0), patients.burden))


def hide_covariates(patients: PriorInputs) -> PriorInputs:
    """Return the patients with all covariates missing."""
    return replace(patients, covariates=np.full_like(patients.covariates, np.nan))


def select_patients(patients: PriorInputs, rows: Ints) -> PriorInputs:
    """Return the patients at `rows`."""
    return PriorInputs(
        patients.burden[rows],
        patients.covariates[rows],
        patients.arm[rows],
        patients.readings[rows],
    )


def draw_donors(arm: Ints, *, seed: int) -> Ints:
    """Return the row of another patient of the same arm for each patient, [n]; -1 if there is none.

    The patients of an arm stand on a random circle and each takes the images of the one before. So
    nobody keeps their own, and every patient's images are used once.
    """
    rng = np.random.default_rng([int(RngStream.PERMUTED_INPUTS), seed])
    donors = np.full(len(arm), -1)
    for one in np.unique(arm):
        circle = rng.permutation(np.flatnonzero(arm == one))
        if len(circle) > 1:
            donors[circle] = np.roll(circle, 1)
    return donors
