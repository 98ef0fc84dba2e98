"""Look up what the law of the simulation says about the test cases of a simulated trial."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lesioncast.simulation.disease import ARM_MODELS
from lesioncast.simulation.outcome_law.patients import redraw_patients, simulation_settings
from lesioncast.simulation.outcome_law.posterior import (
    CounterfactualMoments,
    counterfactual_moments,
)
from storage import Case, Store

logger = logging.getLogger(__name__)


def outcome_law(
    store: Store, cases: Sequence[Case], bids: Path
) -> Mapping[int, CounterfactualMoments]:
    """Return the exact moments of the outcomes of each case under every arm, by its index.

    They are conditional on the record of w000. The result is empty for a trial that is not
    simulated. It is also empty, with a warning, if the trial in `bids` was not simulated by this
    version of the simulation, or if it is not the trial of the store.
    """
    if not store.table.trial.simulated:
        return {}
    settings = simulation_settings(bids)
    patients = None
    if settings is not None and set(store.spec.arms) <= ARM_MODELS.keys():
        patients = redraw_patients(settings, [(case.subject, str(case.arm)) for case in cases])
    if settings is None or patients is None:
        logger.warning(
            "%s: expected the trial of %s, simulated by this version, got another one; effects are "
            "reported without the floor of their error",
            bids,
            store.path,
        )
        return {}
    return {
        case.index: counterfactual_moments(patient, settings.predictability, arms=store.spec.arms)
        for case, patient in zip(cases, patients, strict=True)
    }
