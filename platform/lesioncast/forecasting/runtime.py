"""Sample masks with a bundle's networks for the cases of a store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.arrays import Float32s
from lesioncast.bundle.bundle import Bundle, BundlePrior, load_bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.diffusion.controlnet import prior_features
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.precision import warn_if_slow
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.marginal_map import MappingSampler, make_map_predictor
from lesioncast.forecasting.members import (
    beyond_training,
    draw_members,
    expectations_by_arm,
    sample_members,
)
from lesioncast.forecasting.sampling import (
    ArmExpectations,
    Batch,
    BatchSampler,
    ConditioningArrays,
    Draw,
    EnsembleRequest,
    ExpectationsByInput,
    Hide,
    ModelInput,
    PredictExpectations,
    Read,
    SampleBatch,
)
from lesioncast.imaging.channels import (
    CURRENT,
    Sessions,
    channels_outside_sessions,
    encode_case,
    parse_channels,
)
from lesioncast.imaging.covariates import encode_covariates
from lesioncast.priors.input_patterns import pattern_name
from storage import Location, Store, open_store

DrawBatch = Callable[[Batch], SampleBatch]
"""Samples a batch, and counts the lesions of each mask."""


def build_sampler(
    bundle: Path,
    store: Location,
    *,
    device: str,
    inputs: str | None = None,
    sampler: SamplerConfig | None = None,
    comparison_sessions: Sessions | None = None,
) -> BatchSampler:
    """Load a bundle onto `device`, open a store, and return a sampler of the store's cases.

    This is what a Ray actor does once. `sampler` replaces the bundle's own sampler settings.
    `inputs` is the digest of the case table in which the cases to draw were found.
    `comparison_sessions` as in BatchSampler.

    Raise ForecastError if the bundle and the store do not fit, and StoreError if the store was
    converted again since `inputs` was read: the index of a case may then be another patient's.
    """
    if device == "cpu":
        # One thread a process: the actors are the parallelism.
        torch.set_num_threads(1)
    loaded, opened = load_bundle(bundle, device=device), open_store(store, inputs=inputs)
    if sampler is not None:
        loaded = replace(loaded, config=replace(loaded.config, sampler=sampler))
    return bundle_sampler(loaded, opened, device=device, comparison_sessions=comparison_sessions)


def bundle_sampler(
    bundle: Bundle, store: Store, *, device: str, comparison_sessions: Sessions | None = None
) -> BatchSampler:
    """Return a sampler of the store's cases with the bundle's networks, which are on `device`.

    Raise ForecastError if the bundle and the store do not fit.
    """
    check_compatible(bundle, store)
    warn_if_slow(bundle.config.sampler.precision, torch.device(device))
    return BatchSampler(
        make_mask_sampler(bundle, device=device),
        store_reader(store, bundle.config.model),
        spacing=store.spec.spacing,
        predict=make_expectation_predictor(bundle.priors, bundle.config.model, device=device),
        comparison_sessions=comparison_sessions,
        hide=session_hider(bundle.config.model),
    )


def build_forecast_sampler(
    bundle: Path, store: Location, *, device: str, inputs: str | None = None
) -> DrawBatch:
    """Return `forecast_sampler` of a bundle and a store; see `build_sampler`."""
    if device == "cpu":
        torch.set_num_threads(1)
    loaded, opened = load_bundle(bundle, device=device), open_store(store, inputs=inputs)
    return forecast_sampler(loaded, opened, device=device)


def forecast_sampler(bundle: Bundle, store: Store, *, device: str) -> DrawBatch:
    """Return a sampler for forecasts: with maps in closed form where the networks have a base map.

    The map of networks without one is not better than the share of samples.
    """
    sampler = bundle_sampler(bundle, store, device=device)
    if not bundle.config.model.unet.base_map:
        return sampler
    read = store_reader(store, bundle.config.model)
    return MappingSampler(
        sampler, read, make_map_predictor(bundle, PatientEncoder(bundle, device=device))
    )


def maps_of_requests(
    bundle: Bundle, store: Store, requests: Sequence[EnsembleRequest]
) -> dict[EnsembleRequest, Float32s]:
    """Return the map of each request in closed form; empty for networks without a base map.

    The bundle is on the CPU.
    """
    sampler = forecast_sampler(bundle, store, device="cpu")
    return sampler.maps(requests) if isinstance(sampler, MappingSampler) else {}


@contextmanager
def one_thread(device: str = "cpu") -> Iterator[None]:
    """Compute on one CPU thread: the last bits of a sum depend on the number of threads."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device_of(gpus_per_worker: float) -> str:
    """Return the device of an actor's networks: cuda if it has a GPU."""
    return "cuda" if gpus_per_worker > 0 else "cpu"


def store_reader(store: Store, config: ModelConfig) -> Read:
    """Return a function that reads a case of the store as the input of the networks."""
    channels, hide = parse_channels(config.control.condition), session_hider(config)

    def read(inputs: ModelInput) -> ConditioningArrays:
        case, images = store.cases[inputs.case], store.read(inputs.case)
        arrays = ConditioningArrays(
            encode_case(images, channels=channels),
            encode_covariates(config.covariates, case),
            images.parcellation if config.unet.base_map and case.parcellation else None,
        )
        return arrays if inputs.sessions is None else hide(arrays, inputs.sessions)

    return read


def session_hider(config: ModelConfig) -> Hide:
    """Return a function that hides the images of all but some sessions from the networks."""
    channels = parse_channels(config.control.condition)

    def hide(arrays: ConditioningArrays, sessions: Sessions) -> ConditioningArrays:
        condition = arrays.condition.copy()
        condition[channels_outside_sessions(channels, sessions)] = 0
        # The parcellation was made from the current session.
        parcellation = arrays.parcellation if CURRENT in sessions else None
        return ConditioningArrays(condition, arrays.covariates, parcellation)

    return hide


def make_mask_sampler(bundle: Bundle, *, device: str) -> Draw:
    """Return a function that samples masks with the bundle's networks and sampler settings."""
    encode, models = PatientEncoder(bundle, device=device), [one.model for one in bundle.members]

    def draw(
        inputs: Sequence[ConditioningArrays], arm: npt.NDArray[np.int64], seeds: Sequence[int]
    ) -> npt.NDArray[np.bool_]:
        # Samples of one patient share the object of their input, and its encoding.
        patients = {id(patient): patient for patient in inputs}
        encodings = {key: encode(patient) for key, patient in patients.items()}
        draws = [
            draw
            for row, patient in enumerate(inputs)
            for draw in draw_members(
                models, encodings[id(patient)], int(arm[row]), seeds[row : row + 1]
            )
        ]
        x = sample_members(
            models,
            draws,
            seeds,
            bundle.config.sampler,
            spatial_shape=inputs[0].condition.shape[1:],
        )
        return (x[:, NET2] > 0).cpu().numpy()

    return draw


def make_expectation_predictor(
    priors: Sequence[LesionLoadPrior], config: ModelConfig, *, device: str
) -> PredictExpectations:
    """Return a function that computes exact expectations, or None for models that only sample.

    `priors` are those of the members, which are mixed. They lie on `device`.
    """

    def predict(inputs: ConditioningArrays) -> ArmExpectations | None:
        if not priors:
            return None
        condition, covariates = (
            torch.from_numpy(array).to(device)[None]
            for array in (inputs.condition, inputs.covariates)
        )
        with torch.no_grad():
            patients = [
                prior_features(prior, config.control.masks, condition, covariates)
                for prior in priors
            ]
            expectations, of_members = expectations_by_arm(priors, patients)
            clipped = beyond_training(priors, patients)
            pattern = pattern_name(int(priors[0].pattern(patients[0])))
        class_lesions = tuple(priors[0].lesions.tolist())
        # The model returns one tensor [arm] for each outcome; callers need the outcomes by arm.
        return tuple(
            ExpectedOutcomes(
                p_active,
                lesions,
                log_lesions,
                log_sd,
                tuple(edges),
                clipped,
                class_lesions,
                pattern,
                of_members[arm],
            )
            for arm, (p_active, lesions, log_lesions, log_sd, edges) in enumerate(
                zip(*map(Tensor.tolist, expectations), strict=True)
            )
        )

    return predict


def expected_outcomes_of(
    bundle: BundlePrior, store: Store, inputs: ModelInput
) -> ExpectationsByInput:
    """Return the exact expectations of one case; empty for a model that only samples.

    The bundle's priors are on the CPU.
    """
    predict = make_expectation_predictor(bundle.priors, bundle.config.model, device="cpu")
    expectations = predict(store_reader(store, bundle.config.model)(inputs))
    return {} if expectations is None else {inputs: expectations}
