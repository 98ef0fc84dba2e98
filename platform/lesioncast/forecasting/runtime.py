"""The real thing behind the `Draw` seam: a bundle's networks and a store's cases."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lesioncast.bundle.bundle import METRICS_FILE, Bundle, load_bundle
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.precision import warn_if_slow
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.errors import ForecastError
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.sampling import (
    ArmExpectations,
    BatchSampler,
    ConditioningArrays,
    Draw,
    ModelInput,
    PredictExpectations,
    Read,
    Statements,
)
from lesioncast.imaging.channels import (
    BASELINE_SESSION,
    Sessions,
    channels_outside_sessions,
    encode_case,
    parse_channels,
    sessions_of,
)
from lesioncast.imaging.covariates import encode_covariates
from lesioncast.simulation.ground_truth import has_ground_truth
from storage import Location, Store, open_store


def build_sampler(
    bundle: Path,
    store: Location,
    *,
    device: str,
    inputs: str | None = None,
    sampler: SamplerConfig | None = None,
    compared: Sessions | None = None,
) -> BatchSampler:
    """What a Ray actor holds: the networks on `device` and the open store.

    Draws as the bundle was shipped to, or with another `sampler`. On the CPU one thread a process:
    the actors are the parallelism. `inputs` is that of the table in which the cases to draw were
    found; `compared` as in Sampler. Raises ForecastError where the bundle and the store do not fit,
    StoreError where the store was converted anew since then, so that a case's index may be another
    patient's.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    loaded, opened = load_bundle(bundle, device=device), open_store(store, inputs=inputs)
    check_compatible(loaded, opened)
    if sampler is not None:
        loaded = replace(loaded, config=replace(loaded.config, sampler=sampler))
    warn_if_slow(loaded.config.sampler.precision, torch.device(device))
    return BatchSampler(
        make_mask_sampler(loaded, device=device),
        store_reader(opened, loaded.config.model),
        spacing=opened.spec.spacing,
        state=make_expectation_predictor(loaded, device=device),
        compared=compared,
    )


def device_of(gpus_per_worker: float) -> str:
    """Where the actors' networks live."""
    return "cuda" if gpus_per_worker > 0 else "cpu"


def check_compatible(bundle: Bundle, store: Store) -> None:
    """Raises ForecastError where the store holds other slabs or arms than the bundle knows."""
    for name, wanted, got in (
        ("slab", bundle.config.slab, store.spec.slab),
        ("spacing", bundle.config.spacing, store.spec.spacing),
        ("arms", bundle.config.model.arms, store.spec.arms),
    ):
        if wanted != got:
            raise ForecastError(
                f"{store.path}: expected the bundle's {name} {wanted}, got {got}; convert the "
                f"data with the configuration that {bundle.path} was trained with"
            )


def store_reader(store: Store, config: ModelConfig) -> Read:
    """What the networks are told of a store's cases; channels that a case lacks are null, as are
    those of sessions that are not shown."""
    channels = parse_channels(config.control.condition)

    def read(shown: ModelInput) -> ConditioningArrays:
        condition = encode_case(store.read(shown.case), channels=channels)
        if shown.sessions is not None:
            condition[channels_outside_sessions(channels, shown.sessions)] = 0
        return ConditioningArrays(
            condition, encode_covariates(config.covariates, store.cases[shown.case])
        )

    return read


def make_mask_sampler(bundle: Bundle, *, device: str) -> Draw:
    """Masks from the bundle's networks with the sampler that it was shipped with."""

    def draw(
        condition: npt.NDArray[np.float32],
        arm: npt.NDArray[np.int64],
        seeds: Sequence[int],
        covariates: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.bool_]:
        masks = bundle.model.sample_masks(
            torch.from_numpy(condition).to(device),
            torch.from_numpy(arm).to(device),
            seeds,
            bundle.config.sampler,
            covariates=torch.from_numpy(covariates).to(device),
        )
        return masks.cpu().numpy()

    return draw


def make_expectation_predictor(bundle: Bundle, *, device: str) -> PredictExpectations:
    """What the bundle's networks state, where they do."""

    def state(given: ConditioningArrays) -> ArmExpectations | None:
        stated = bundle.model.expected_outcomes(
            *(torch.from_numpy(each).to(device) for each in given)
        )
        if stated is None:
            return None
        return tuple(
            ExpectedOutcomes(*of_arm) for of_arm in zip(*map(Tensor.tolist, stated), strict=True)
        )

    return state


def expected_outcomes_of(bundle: Bundle, store: Store, shown: ModelInput) -> Statements:
    """What the bundle, on the CPU, states of one case; nothing where it does not."""
    statement = make_expectation_predictor(bundle, device="cpu")(
        store_reader(store, bundle.config.model)(shown)
    )
    return {} if statement is None else {shown: statement}


def input_sessions(bundle: Bundle) -> Sessions:
    """The sessions among the channels of the bundle's condition."""
    return sessions_of(parse_channels(bundle.config.model.control.condition))


def supported_sessions(bundle: Bundle) -> tuple[Sessions, ...]:
    """What a forecast may show the bundle: all sessions that it sees, or w000 alone where it was
    trained for that."""
    seen = input_sessions(bundle)
    return (
        (seen, (BASELINE_SESSION,))
        if bundle.config.baseline_only and seen != (BASELINE_SESSION,)
        else (seen,)
    )


def resolve_sessions(bundle: Bundle, wanted: Sequence[str]) -> Sessions:
    """Those `wanted`, or all where none is. ForecastError where the bundle was not trained so."""
    choices = supported_sessions(bundle)
    if wanted and tuple(wanted) not in choices:
        raise ForecastError(
            f"forecast.sessions: expected {format_choices(choices)}, got {', '.join(wanted)}; "
            f"to show {BASELINE_SESSION} alone, train stage 2 with finetune.session_dropout above 0"
        )
    return tuple(wanted) or choices[0]


def format_choices(choices: Sequence[Sessions]) -> str:
    """The choices in words."""
    return " or else ".join(", ".join(each) for each in choices)


def comparison_sessions(bundle: Bundle) -> Sessions | None:
    """Those that the bundle is shown where the arms of a patient are compared: w000 alone, where
    it was trained for that, since later images show what the arm received has done. None: all."""
    compared = supported_sessions(bundle)[-1]
    return None if compared == input_sessions(bundle) else compared


def training_data_note(bundle: Path) -> str:
    """What the bundle's own record says of the data it learned from."""
    data = str(_training_metrics(bundle).get("data", "data not recorded"))
    return f"Trained on {data.rstrip('.')}."


def bundle_steps(bundle: Path) -> str:
    """How long the bundle was trained, such as `450 + 600 steps, seed 0`."""
    made = _training_metrics(bundle)
    counts = " + ".join(str(stage["step"]) for stage in made["stages"].values())
    return f"{counts} steps, seed {made['seed']}"


def _training_metrics(bundle: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((bundle / METRICS_FILE).read_text())
    return record


def simulated_data_notes(bids: Path) -> tuple[str, ...]:
    """Says so where the subjects themselves are simulated: their true futures lie beside them."""
    return ("The subjects are simulated.",) if has_ground_truth(bids) else ()
