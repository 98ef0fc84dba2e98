"""Simulate cases of the demo's grid in memory, as conversion to a store would give them."""

import numpy as np

from lesioncast.priors.spatial.inputs import SpatialCase, SpatialInputs
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import SimulatedSubject, simulate_subject
from storage.preprocess.normalise import intensity_range, scale_flair

SPACING = (3.0, 3.0, 3.0)
SLAB = (15, 64, 56)
_BOX = (slice(3, 18), slice(None), slice(4, 60))  # the middle of the simulated volume


def simulate_cases(number: int, *, seed: int) -> list[SpatialCase]:
    """Return that many simulated patients without treatment who have new lesions."""
    settings = SimulationSettings(subjects=10_000, seed=seed, shape=(21, 64, 64), spacing=SPACING)
    cases: list[SpatialCase] = []
    index = 0
    while len(cases) < number:
        case = spatial_case(simulate_subject(settings, index, arm="placebo"))
        cases += [case] if case.outcome.any() else []
        index += 1
    return cases


def spatial_case(subject: SimulatedSubject) -> SpatialCase:
    """Return what the prior reads of a simulated subject, and its new lesions at w096."""
    channels = {}
    for session, name in enumerate(("w000", "w048")):
        image, brain = subject.flair[session], subject.flair[session] > 0
        limits = intensity_range(image, brain, percentiles=(0.5, 99.5))
        channels[f"{name}/flair"] = scale_flair(image, brain, limits=limits)[_BOX]
        channels[f"{name}/t2"] = _signed(subject.t2[session])
        channels[f"{name}/gad"] = _signed(subject.gad[session])
    channels["w048/net2"] = _signed(subject.net2("w048"))
    inputs = SpatialInputs(channels, SPACING, subject.parcellation[_BOX])
    return SpatialCase(inputs, subject.net2("w096")[_BOX])


def _signed(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 1, -1).astype(np.float32)[_BOX]
