"""Regional risks in closed form agree with P(active), the map and simulated lesions."""

from dataclasses import replace

import numpy as np
import pytest

from lesioncast.forecasting.ensemble import Ensemble, ExpectedOutcomes
from lesioncast.forecasting.output.summary import (
    RunProvenance,
    SubjectInfo,
    read_summary,
    summarise,
    write_summary,
)
from lesioncast.forecasting.regional_risk import region_shares, regional_risks, risk_of_region
from lesioncast.forecasting.view.kept_samples import KeptSamples
from lesioncast.forecasting.view.numbers import finished_numbers
from lesioncast.imaging.regions import (
    CORTEX,
    REGIONS,
    WHITE_MATTER,
    regional_lesions,
    touching_ratios,
)

SHAPE = (3, 8, 8)
CLASSES = np.array([0.6, 0.2, 0.15, 0.05])
LESIONS = (0.0, 1.3, 2.9, 8.0)
EXPECTED = ExpectedOutcomes(
    0.4,
    float(CLASSES @ LESIONS),
    0.5,
    load_edges=tuple(np.cumsum(CLASSES)[:-1]),
    class_lesions=LESIONS,
)
LABELS = np.zeros(SHAPE, np.int16)
LABELS[:, :, :4], LABELS[:, :, 4:6] = WHITE_MATTER[0], CORTEX[1]
EVEN = np.full(SHAPE, 2.0 / LABELS.size, np.float32)
ENSEMBLE = Ensemble(
    case=0,
    arm=0,
    seeds=(1, 2),
    plain=np.array([0, 3]),
    opened=np.array([0, 1]),
    volume=np.array([0.0, 9.0]),
    sample_share=np.zeros(SHAPE, np.float32),
    closed_form_map=EVEN,
    expected=EXPECTED,
)
RATIOS = {"white_matter": 1.0, "cortex": 2.0}


def test_the_risk_of_a_region_that_no_lesion_misses_is_p_active() -> None:
    assert risk_of_region(1.0, EXPECTED) == pytest.approx(EXPECTED.p_active)
    assert risk_of_region(1.7, EXPECTED) == pytest.approx(EXPECTED.p_active)
    assert risk_of_region(0.0, EXPECTED) == 0
    risks = [risk_of_region(touch, EXPECTED) for touch in np.linspace(0, 1, 21)]
    assert (np.diff(risks) > 0).all()


@pytest.mark.parametrize("touch", [0.02, 0.1, 0.5, 0.9])
def test_the_risk_is_the_share_of_simulated_patients_with_a_lesion_there(touch: float) -> None:
    rng = np.random.default_rng(0)
    patients = 200_000
    load = rng.choice(len(CLASSES), patients, p=CLASSES)
    further = np.maximum(np.array(LESIONS) - 1, 0)[load]
    lesions = np.where(load > 0, 1 + rng.poisson(further), 0)
    share = (rng.binomial(lesions, touch) > 0).mean()
    error = np.sqrt(share * (1 - share) / patients)
    assert risk_of_region(touch, EXPECTED) == pytest.approx(share, abs=4 * error)
    # For a region that lesions seldom touch it is the expected number of touching lesions.
    if touch == 0.02:
        assert risk_of_region(touch, EXPECTED) == pytest.approx(touch * EXPECTED.lesions, rel=0.1)


def test_risks_follow_from_the_regions_shares_of_the_map() -> None:
    assert region_shares(EVEN, LABELS) == {"white_matter": 0.5, "cortex": 0.25}
    risks = regional_risks(ENSEMBLE, LABELS, RATIOS, opening=False)
    assert risks == {region: risk_of_region(0.5, EXPECTED) for region in REGIONS}
    assert max(risks.values()) < EXPECTED.p_active
    nothing = replace(ENSEMBLE, closed_form_map=np.zeros(SHAPE, np.float32))
    assert set(regional_risks(nothing, LABELS, RATIOS, opening=False).values()) == {0.0}


def test_without_map_parcellation_or_expectation_risks_are_those_of_samples() -> None:
    assert regional_risks(ENSEMBLE, None, RATIOS, opening=False) == {}
    assert regional_risks(ENSEMBLE, LABELS, RATIOS, opening=True) == {}
    assert regional_risks(ENSEMBLE, LABELS, {}, opening=False) == {}
    for lacking in ({"closed_form_map": None}, {"expected": None}):
        assert regional_risks(replace(ENSEMBLE, **lacking), LABELS, RATIOS, opening=False) == {}


def test_file_and_page_have_the_same_risks_and_a_share_keeps_its_name(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def summary(parcellation: np.ndarray | None):  # type: ignore[no-untyped-def]
        return summarise(
            SubjectInfo("sub-01", None, None, parcellation=parcellation),
            {"placebo": ENSEMBLE},
            reference="placebo",
            opening=False,
            spacing=(3.0, 3.0, 3.0),
            provenance=RunProvenance("b" * 64, 0, touching_ratios=RATIOS),
        )

    found = summary(LABELS)
    write_summary(tmp_path / "sub-01_forecast.json", found)
    stored = read_summary(tmp_path / "sub-01_forecast.json").arms["placebo"].regions
    assert stored == regional_risks(ENSEMBLE, LABELS, RATIOS, opening=False)
    kept = KeptSamples({}, {"placebo": {"white_matter": 1.0, "cortex": 0.0}})
    (numbers,) = finished_numbers(found, kept, errors={})
    assert (numbers.regions, numbers.regions_in_closed_form) == (stored, True)
    (numbers,) = finished_numbers(summary(None), kept, errors={})
    assert (numbers.regions, numbers.regions_in_closed_form) == (kept.regions["placebo"], False)


def test_ratios_compare_lesions_with_lesion_voxels() -> None:
    """Two of three lesions touch the white matter, one the cortex with one voxel of its four."""
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0] = mask[0, 2, 1:5] = mask[2, 6, 7] = True
    counts = regional_lesions(mask, LABELS)
    assert (counts.lesions, counts.voxels) == (3, 6)
    assert counts.touching.tolist() == [2, 1]
    assert counts.inside.tolist() == [4, 1]
    ratios = touching_ratios([counts, counts])
    assert ratios == pytest.approx({"white_matter": (2 / 3) / (4 / 6), "cortex": (1 / 3) / (1 / 6)})
    only_white = regional_lesions(mask & (WHITE_MATTER[0] == LABELS), LABELS)
    assert touching_ratios([only_white])["cortex"] == 1
    assert touching_ratios([regional_lesions(np.zeros(SHAPE, bool), LABELS)]) == {}
