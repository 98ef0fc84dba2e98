"""Forecasts that a bundle states in closed form: those of its lesion load prior, without samples.

They give P(active), the expected count, and mean and spread of log(1 + count). So cases that are
only calibrated on, or only scored on these, need not be sampled.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from lesioncast.bundle.bundle import Bundle, load_bundle_prior
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.evaluation.features.outcomes import Chunk, chunk_cases
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.runtime import expected_outcomes_of
from lesioncast.forecasting.sampling import ModelInput
from storage import Case, Location, Store, open_store

NOT_SAMPLED = np.zeros(0, np.int64)


def has_closed_form(bundle: Bundle, *, opening: bool) -> bool:
    """Return True if the bundle states P(active) and the count without sampling.

    After the opening nothing is known in closed form.
    """
    return bool(bundle.priors) and not opening


def build_closed_form(
    bundle: Path, store: Location, *, inputs: str
) -> Callable[[Chunk], list[ExpectedOutcomes]]:
    """Load the bundle's priors, open a store, and return the forecast of its cases.

    Each case is forecast under the arm that it received, from all its images. A Ray actor keeps the
    function. `inputs` as in `build_sampler`.
    """
    priors, opened = load_bundle_prior(bundle), open_store(store, inputs=inputs)

    def forecast(chunk: Chunk) -> list[ExpectedOutcomes]:
        requests = [ModelInput(index) for index in chunk]
        return [
            expected_outcomes_of(priors, opened, request)[request][
                opened.cases[request.case].arm_index
            ]
            for request in requests
        ]

    return forecast


def closed_form_summaries(
    store: Store, cases: Sequence[Case], bundle: Path, *, workers: int
) -> dict[tuple[int, int], EnsembleSummary]:
    """Return the forecast of each case under the arm that it received, computed on Ray actors.

    The summaries hold no samples, only what is expected.
    """
    chunks = chunk_cases(cases)
    build = partial(build_closed_form, bundle, store.path, inputs=store.table.inputs)
    forecasts = with_progress(
        ordered_actor_map(build, chunks, workers=workers),
        total=len(chunks),
        label="chunks of cases forecast in closed form",
    )
    return {
        (case.index, case.arm_index): EnsembleSummary(
            plain=NOT_SAMPLED, opened=NOT_SAMPLED, expected=expected
        )
        for case, expected in zip(cases, chain.from_iterable(forecasts), strict=True)
    }
