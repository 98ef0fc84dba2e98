"""Simulated subjects: exact counterfactuals, lesion sites as in the paper, MRI contrast."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from scipy import ndimage

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.errors import PlacementError, SimulationError
from lesioncast.imaging.regions import CORTEX, CSF, VENTRICLE, WHITE_MATTER
from lesioncast.simulation.disease import draw_patient
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import SimulatedSubject, simulate_subject
from storage.layout import CONNECTIVITY_26
from tests.simulation.optional_parts import with_all_parts

SETTINGS = SimulationSettings(subjects=300, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=5)
ALL_PARTS = with_all_parts(replace(SETTINGS, subjects=200))
BOTH = pytest.mark.parametrize("settings", [SETTINGS, ALL_PARTS], ids=["default", "all parts"])
PERIODS = ("w048", "w096")


@dataclass(frozen=True)
class SubjectMeasurements:
    """Measurements of a subject that the tests below need; the volumes are discarded."""

    wrong_counts: int  # of 2 periods x 6 arms
    not_nested: int
    in_white: bool  # w096 NET2 touches the region
    in_cortex: bool
    beyond_slab: bool
    brain_share: float  # of the slab's brain that NET2 fills at w096


def measure(subject: SimulatedSubject) -> SubjectMeasurements:
    """Measure the counterfactual and observed masks of a subject."""
    masks = {(p, arm): subject.net2(p, arm) for p in PERIODS for arm in PAPER_ARM_NAMES}
    counts = {
        (p, arm): subject.counts[k, a]
        for k, p in enumerate(PERIODS)
        for a, arm in enumerate(PAPER_ARM_NAMES)
    }
    ordered = [sorted(PAPER_ARM_NAMES, key=lambda arm: counts[p, arm]) for p in PERIODS]
    observed = subject.net2("w096")
    regions = subject.parcellation[observed]
    return SubjectMeasurements(
        wrong_counts=sum(ndimage.label(masks[k], CONNECTIVITY_26)[1] != counts[k] for k in masks),
        not_nested=sum(
            bool((masks[p, fewer] & ~masks[p, more]).any())
            for p, arms in zip(PERIODS, ordered, strict=True)
            for fewer, more in zip(arms, arms[1:], strict=False)
        ),
        in_white=bool(np.isin(regions, WHITE_MATTER).any()),
        in_cortex=bool(np.isin(regions, CORTEX).any()),
        beyond_slab=bool(subject.ranks[:, [0, 1, 2, -3, -2, -1]].any()),
        brain_share=float(observed.sum() / (subject.parcellation > 0).sum()),
    )


@pytest.fixture(scope="module", params=[SETTINGS, ALL_PARTS], ids=["default", "all parts"])
def trial(request: pytest.FixtureRequest) -> list[SubjectMeasurements]:
    """Simulate and measure all subjects."""
    settings: SimulationSettings = request.param
    return [measure(simulate_subject(settings, index)) for index in range(settings.subjects)]


def same(
    first: SimulatedSubject, second: SimulatedSubject, *, except_fields: tuple[str, ...] = ()
) -> bool:
    """Return True if all fields, apart from `except_fields`, are equal."""
    names = [field.name for field in fields(SimulatedSubject) if field.name not in except_fields]
    return all(np.array_equal(getattr(first, n), getattr(second, n)) for n in names)


def busy_subject(settings: SimulationSettings = SETTINGS) -> SimulatedSubject:
    """Return a subject with new lesions in both periods under the assigned arm."""
    subjects = (simulate_subject(settings, index) for index in range(100))
    return next(s for s in subjects if s.net2("w048").any() and s.net2("w096").any())


def test_connected_components_count_the_lesions_under_every_arm(
    trial: list[SubjectMeasurements],
) -> None:
    assert sum(m.wrong_counts for m in trial) == 0


def test_masks_are_nested_in_their_counts(trial: list[SubjectMeasurements]) -> None:
    assert sum(m.not_nested for m in trial) == 0


@pytest.mark.parametrize(
    ("prevalence", "of"), [(0.33, lambda m: m.in_white), (0.10, lambda m: m.in_cortex)]
)
def test_regions_are_hit_as_often_as_in_section_4_1(
    trial: list[SubjectMeasurements], prevalence: float, of: Callable[[SubjectMeasurements], bool]
) -> None:
    """33 % of patients in white matter and 10 % in cortex, within 3 standard errors."""
    error = np.sqrt(prevalence * (1 - prevalence) / len(trial))
    assert abs(np.mean([of(m) for m in trial]) - prevalence) < 3 * error


def test_new_lesions_stay_in_the_central_slab_and_are_rare(
    trial: list[SubjectMeasurements],
) -> None:
    assert not any(m.beyond_slab for m in trial)
    assert np.mean([m.brain_share for m in trial]) < 0.001


@BOTH
def test_an_arm_changes_outcomes_and_nothing_before_them(settings: SimulationSettings) -> None:
    """The intervention do(arm) keeps patient, brain and w000 and changes the new lesions."""
    subject = busy_subject(settings)
    for arm in ("placebo", "ocrelizumab"):
        treated = simulate_subject(settings, subject.index, arm=arm)
        assert same(treated, subject, except_fields=("arm", "flair", "t2", "gad"))
        assert np.array_equal(treated.flair[0], subject.flair[0])
        for period in PERIODS:
            assert np.array_equal(treated.net2(period), subject.net2(period, arm))


@BOTH
def test_the_observed_mask_is_the_counterfactual_one_under_the_assigned_arm(
    settings: SimulationSettings,
) -> None:
    for index in range(12):
        subject = simulate_subject(settings, index)
        for session, period in enumerate(PERIODS, 1):
            added = subject.t2[session] & ~subject.t2[session - 1]
            assert np.array_equal(added, subject.net2(period))
            assert np.array_equal(added, subject.net2(period, subject.arm))
            assert not (subject.gad[session] & ~added).any()


def test_a_subject_depends_on_seed_and_index_alone() -> None:
    first = simulate_subject(SETTINGS, 3)
    simulate_subject(SETTINGS, 8)
    assert same(first, simulate_subject(SETTINGS, 3))
    other = SimulationSettings(subjects=300, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=6)
    assert not same(first, simulate_subject(other, 3))


@BOTH
def test_flair_shows_tissue_and_new_lesions_as_mri_does(settings: SimulationSettings) -> None:
    subject = busy_subject(settings)
    first, second = subject.flair[0], subject.flair[1]

    def level(*ids: int, percentile: float = 50) -> float:
        tissue = np.isin(subject.parcellation, ids) & ~subject.t2[0]
        return float(np.percentile(first[tissue], percentile))

    assert level(*CSF, *VENTRICLE) < 0.75 * level(*WHITE_MATTER)
    # A voxel of 3 mm mixes cortex with sulci, so compare where each is purest.
    assert level(*WHITE_MATTER, percentile=80) < level(*CORTEX, percentile=80)
    assert first[subject.t2[0]].mean() > 1.2 * level(*WHITE_MATTER)
    brain = subject.parcellation > 0
    gain = second / np.median(second[brain]) - first / np.median(first[brain])
    assert gain[subject.net2("w048")].mean() > 0.15
    assert abs(gain[brain & ~subject.net2("w048")].mean()) < 0.05
    assert not first[[0, -1]][:, [0, -1]].any(), "the field's edge is air"


@pytest.mark.parametrize(
    ("shape", "spacing"), [((24, 128, 128), (3.0, 1.5, 1.5)), ((15, 48, 40), (3.0, 4.0, 4.5))]
)
def test_a_subject_is_the_same_on_any_grid(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    settings = SimulationSettings(subjects=1, shape=shape, spacing=spacing, seed=5)
    subject = busy_subject(settings)
    assert subject.flair.shape == (3, *shape)
    assert measure(subject).wrong_counts == 0
    coarse = simulate_subject(SETTINGS, subject.index)
    assert np.array_equal(subject.counts, coarse.counts)
    same_brain = resample_labels(subject.parcellation, spacing, onto=coarse.parcellation)
    overlap = (same_brain == coarse.parcellation)[3:-3][coarse.parcellation[3:-3] > 0]
    assert overlap.mean() > 0.75


def resample_labels(
    labels: np.ndarray, spacing: tuple[float, float, float], *, onto: np.ndarray
) -> np.ndarray:
    """Resample labels from a grid with the same centre to the voxels of `onto`."""
    voxels = np.indices(onto.shape).reshape(3, -1) - (np.array(onto.shape)[:, None] - 1) / 2
    millimetres = voxels * np.array(SETTINGS.spacing)[:, None]
    coordinates = (
        millimetres / np.array(spacing)[:, None] + (np.array(labels.shape)[:, None] - 1) / 2
    )
    return ndimage.map_coordinates(labels, coordinates, order=0).reshape(onto.shape)


def test_an_unknown_arm_raises() -> None:
    with pytest.raises(SimulationError, match="expected an arm out of placebo, .*, got aspirin"):
        simulate_subject(SETTINGS, 0, arm="aspirin")


def test_a_grid_without_free_white_matter_raises_and_names_the_subject() -> None:
    settings = SimulationSettings(subjects=1, shape=(2, 4, 4), spacing=(3.0, 3.0, 3.0))
    index = next(i for i in range(100) if draw_patient(settings, i).counts.max() > 8)
    with pytest.raises(PlacementError, match=f"subject {index}: expected free white matter"):
        simulate_subject(settings, index)
