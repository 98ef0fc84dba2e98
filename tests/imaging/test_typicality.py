"""A patient is untypical if the features lie far out among those of patients like the training."""

from dataclasses import replace

import numpy as np
import pytest

from lesioncast.arrays import Floats, Ints
from lesioncast.imaging.features.image_features import CaseImages
from lesioncast.imaging.features.patient_features import (
    BEFORE_TREATMENT,
    FEATURE_GROUPS,
    PATIENT_FEATURES,
    in_words,
    patient_features,
)
from lesioncast.imaging.features.tissue_contrast import RawRange
from lesioncast.imaging.typicality import (
    MIN_RANKED,
    ArmSupport,
    Typicality,
    TypicalityReference,
    fit_gaussian,
    judge,
)
from storage import CaseArrays, VisitSchedule
from storage.layout import CHANNELS, MASKS, SESSIONS

RNG = np.random.default_rng(0)
FEATURES = 6
ALL = (np.arange(FEATURES),)
SPACING = (3.0, 2.0, 2.0)
LIMITS = {session: RawRange(50.0, 450.0) for session in SESSIONS}


def draw(patients: int, rng: np.random.Generator = RNG) -> Floats:
    """Draw correlated features, the last of which never varies."""
    features = rng.standard_normal((patients, FEATURES))
    features[:, 1] = 0.9 * features[:, 0] + 0.4 * features[:, 1]
    features[:, -1] = 3.0
    return features


def reference(features: Floats, arm: Ints | None = None) -> TypicalityReference:
    arm = np.zeros(len(features), np.int64) if arm is None else arm
    fitted = np.arange(len(features)) % 4 == 0
    gaussian = fit_gaussian(features[fitted], arm[fitted], arms=2)
    return TypicalityReference(gaussian, features[~fitted].astype(np.float32), arm[~fitted])


def typicality(of: TypicalityReference, features: Floats) -> Typicality:
    return judge(of, features, groups=ALL, before_treatment=np.ones(FEATURES, bool))


def test_fresh_patients_are_called_untypical_as_often_as_stated() -> None:
    rng = np.random.default_rng(1)
    known = reference(draw(4000, rng))
    p = np.array([typicality(known, one).p_value for one in draw(1000, rng)], np.float64)
    assert 0.003 <= (p < 0.01).mean() <= 0.02
    assert abs((p < 0.5).mean() - 0.5) < 0.06


@pytest.mark.parametrize(
    ("column", "shift"), [(2, 8.0), (1, 5.0), (FEATURES - 1, 1.0)],
    ids=["far out", "against its correlation", "constant in training"],
)  # fmt: skip
def test_one_feature_far_out_is_enough(column: int, shift: float) -> None:
    known, patient = reference(draw(2000)), np.array([0, 0, 0, 0, 0, 3.0])
    patient[column] += shift
    found = typicality(known, patient)
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert found.unusual[0].column == column
    assert found.unusual[0].value > found.unusual[0].high


def test_missing_features_are_left_out_of_both_sides() -> None:
    known, patient = reference(draw(2000)), np.full(FEATURES, np.nan)
    patient[2] = 0.1
    found = typicality(known, patient)
    assert found.p_value is not None
    assert found.p_value > 0.05
    assert [one.column for one in found.unusual] == [2]
    assert typicality(known, np.full(FEATURES, np.nan)).p_value is None


def test_a_feature_that_too_few_training_patients_have_is_not_judged() -> None:
    features = draw(2000)
    features[: 2000 - MIN_RANKED, 3] = np.nan
    patient = np.array([0, 0, 0, 50.0, 0, 3.0])
    found = typicality(reference(features), patient)
    assert found.p_value is not None
    assert found.p_value > 0.05
    assert 3 not in [one.column for one in found.unusual]


def test_too_few_training_patients_give_no_p_value() -> None:
    assert typicality(reference(draw(MIN_RANKED)), draw(1)[0]).p_value is None


def test_an_arm_that_only_other_patients_received_has_no_support() -> None:
    features, arm = draw(2000), np.random.default_rng(2).integers(0, 2, 2000)
    features[arm == 1, 2] += 6
    known = reference(features, arm)
    here, there = (typicality(known, draw(1)[0] + shift).arms for shift in (0, [0, 0, 6, 0, 0, 0]))
    assert [one.p_value is not None and one.p_value >= 0.05 for one in here] == [True, False]
    assert [one.p_value is not None and one.p_value >= 0.05 for one in there] == [False, True]
    assert typicality(reference(draw(400)), draw(1)[0]).arms[1] == ArmSupport(None, 0)


def images(*, flair_w048: bool = True) -> CaseArrays:
    """Return a head with one lesion at both sessions and a new one at w048."""
    shape = (5, 40, 40)
    s, h, w = np.indices(shape)
    head = (h - 20) ** 2 + (w - 20) ** 2 < 15**2
    flair = np.where(head, 0.2 + 0.05 * np.random.default_rng(3).standard_normal((3, *shape)), -1)
    masks = np.zeros((3, len(MASKS), *shape), np.uint8)
    masks[:, 0, 2, 15:17, 15:17] = 1
    masks[1:, 0, 2, 25:27, 25:27] = masks[1, 2, 2, 25:27, 25:27] = 1
    flair[:2] += 0.5 * masks[:2, 0]
    present = np.ones((3, len(CHANNELS)), bool)
    present[1, 0] = flair_w048
    flair[1] *= flair_w048
    labels = np.where(head, 2, 0).astype(np.int16)
    labels[:, :20][head[:, :20]] = 3
    return CaseArrays(flair.astype(np.float16), masks, labels, present)


def measured(arrays: CaseImages, spacing: tuple[float, float, float] = SPACING) -> dict[str, float]:
    features = patient_features(arrays, spacing, LIMITS)
    return dict(zip(PATIENT_FEATURES, features.tolist(), strict=True))


def test_features_have_the_values_of_their_definitions() -> None:
    found = measured(images())
    assert found["extent_right_w000"] == pytest.approx(np.log(29 * 2.0))
    assert found["dark_over_bright_w048"] == pytest.approx(50 / 450)
    assert found["grey_over_white_w000"] == pytest.approx(1, abs=0.02)
    assert np.isnan(found["fluid_over_white_w000"])
    assert np.expm1(found["t2_gained"]) == pytest.approx(4 * 12)
    assert found["t2_lost"] == found["net2_outside_t2"] == found["net2_in_older_t2"] == 0
    assert found["net2_rise"] > 3


def test_swapped_sessions_lose_lesions_and_brightness() -> None:
    arrays, order = images(), [1, 0, 2]
    masks = arrays.masks[order]
    masks[1, 2] = arrays.masks[1, 2]
    found = measured(replace(arrays, flair=arrays.flair[order], masks=masks))
    assert np.expm1(found["t2_lost"]) == pytest.approx(4 * 12)
    assert np.expm1(found["net2_outside_t2"]) == pytest.approx(4 * 12)
    assert found["net2_rise"] < -3


def test_a_wrong_voxel_size_changes_the_size_of_the_head() -> None:
    right, wrong = measured(images()), measured(images(), (3.0, 2.5, 2.5))
    for name in ("extent_forward_w000", "extent_right_w048"):
        assert wrong[name] - right[name] == pytest.approx(np.log(1.25))


def test_a_session_without_flair_has_no_features_of_it() -> None:
    found = measured(images(flair_w048=False))
    assert np.isnan([found["rim_w048"], found["flair_correlation"], found["net2_rise"]]).all()
    assert np.isfinite([found["rim_w000"], found["t2_gained"]]).all()


def test_every_feature_can_be_told_in_words() -> None:
    visits = VisitSchedule(labels=("m00", "m12", "m24"))
    told = [
        in_words(column, 1.0, 0.0, 2.0, visits=visits) for column in range(len(PATIENT_FEATURES))
    ]
    assert len({one.name for one in told}) == len(told)
    assert not any("w0" in one.name for one in told)
    assert any(one.name.endswith("at m12") for one in told)
    assert told[PATIENT_FEATURES.index("t2_lost")].value == "1.72 mm3"


def test_groups_and_baseline_name_the_features_that_they_should() -> None:
    everything, scanner = (
        {PATIENT_FEATURES[column] for column in group} for group in FEATURE_GROUPS
    )
    assert everything == set(PATIENT_FEATURES)
    assert {"noise_w000", "fluid_over_white_w048"} < scanner
    assert not any(name.startswith(("t2_", "net2_", "extent_")) for name in scanner)
    assert all(name.endswith("_w000") for name in np.array(PATIENT_FEATURES)[BEFORE_TREATMENT])
