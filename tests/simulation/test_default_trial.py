"""The default settings keep the trial of the first version: recorded masks, counts and images."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from lesioncast.simulation.outcome_law.redraw import last_period
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import simulate_subject

SETTINGS = SimulationSettings(subjects=9, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=5)


@dataclass(frozen=True)
class Recorded:
    """What a subject was before the simulation had any of the optional settings."""

    #: Digest of its masks, labels, ranks and counts.
    discrete: str
    #: `flair_summary` of its images. Their last bits depend on the processor.
    flair: tuple[float, float, float]
    #: Digest of its last period, redrawn.
    redrawn: str


RECORDED = {
    0: Recorded(
        "d80453dadbadd347",
        (101.5804, 117.5636, 15.7483),
        "9c70d3e95c0dee0f",
    ),
    1: Recorded(
        "5f2ace09e26ee4c1",
        (120.0375, 138.844, 18.4371),
        "9c70d3e95c0dee0f",
    ),
    3: Recorded(
        "eb3a5bd97ea2da1c",
        (142.7202, 156.5778, 21.6737),
        "9c70d3e95c0dee0f",
    ),
    8: Recorded(
        "20e2e0c48393169e",
        (412.7241, 468.7221, 61.245),
        "043001581398defe",
    ),
}


def digest(*arrays: npt.NDArray[np.generic]) -> str:
    """Return the first 16 digits of the SHA-256 of integer or boolean arrays."""
    content = b"".join(np.ascontiguousarray(array, dtype="<i8").tobytes() for array in arrays)
    return hashlib.sha256(content).hexdigest()[:16]


def flair_summary(flair: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """Return mean, standard deviation and roughness along rows of images."""
    image = flair.astype(np.float64)
    return float(image.mean()), float(image.std()), float(np.abs(np.diff(image)).mean())


@pytest.mark.parametrize("index", RECORDED)
def test_default_settings_give_the_recorded_subject(index: int) -> None:
    subject, recorded = simulate_subject(SETTINGS, index), RECORDED[index]
    arrays = (subject.t2, subject.gad, subject.parcellation, subject.ranks, subject.counts)
    assert digest(*arrays) == recorded.discrete
    assert flair_summary(subject.flair) == pytest.approx(recorded.flair, rel=1e-5)
    assert digest(last_period(SETTINGS, index).redraw(1)) == recorded.redrawn
