"""Warnings about treatments appear where the data call for them, and only there."""

import numpy as np
import pytest

from lesioncast.evaluation.causal.identifiability import coded_warnings, identifiability_warnings
from lesioncast.evaluation.causal.leakage_probe import leakage_auc
from lesioncast.evaluation.causal.positivity import overlap_by_arm, positivity
from lesioncast.evaluation.causal.schema import ArmPositivity, IdentifiabilityWarnings
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.imaging.features.appearance import APPEARANCE_FEATURES, appearance_features
from lesioncast.imaging.features.image_features import IMAGE_FEATURES
from lesioncast.imaging.regions import REGIONS
from lesioncast.warning_list import texts
from storage import VisitSchedule

ARMS = ("placebo", "interferon", "ocrelizumab")
BOOTSTRAP = Bootstrap(200, 0)
SHAPE = (5, 20, 20)
CASES = 120


def head(rng: np.random.Generator, *, scanner: int) -> np.ndarray:
    """Return a ball of tissue in air; scanner 1 has twice the noise and some shading."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    noise = rng.normal(0, 0.04 * (1 + scanner), SHAPE)
    shade = 0.1 * scanner * axes[2]
    return np.where(inside, 0.2 + shade + noise, -1.0)


def outcomes(arm: np.ndarray, scanner: np.ndarray, *, seed: int = 0) -> OutcomeTable:
    """Make cases with one scanner for both sessions; their lesion features are random."""
    rng = np.random.default_rng(seed)
    present = np.ones((3, 4), bool)
    appearance = [
        appearance_features(
            np.stack([head(rng, scanner=which) for _ in range(3)]).astype(np.float16),
            present,
            (3.0, 1.0, 1.0),
        )
        for which in scanner
    ]
    n = len(arm)
    return OutcomeTable(
        case=tuple(range(n)),
        subjects=tuple(f"sub-{row:03d}" for row in range(n)),
        arm=arm,
        image_features=rng.normal(size=(n, len(IMAGE_FEATURES))),
        plain=np.zeros(n),
        opened=np.zeros(n),
        net2_count_current=np.zeros(n),
        regions=np.zeros((n, len(REGIONS))),
        trial=(None,) * n,
        appearance=np.array(appearance),
    )


def warnings_of(
    arm: np.ndarray, scanner: np.ndarray, trial: list[str | None]
) -> IdentifiabilityWarnings:
    parts = [outcomes(arm[half], scanner[half], seed=1 + half.start) for half in HALVES]
    return identifiability_warnings(
        parts,
        trial,
        arms=ARMS,
        sessions=("w000", "w048"),
        bootstrap=BOOTSTRAP,
        visits=VisitSchedule(("m00", "m12", "m24"), (0, 365, 730)),
    )


HALVES = (slice(0, CASES // 2), slice(CASES // 2, CASES))
ARM = np.arange(CASES) % 3
RANDOMISED = np.random.default_rng(3).integers(0, 2, CASES)


@pytest.fixture(scope="module")
def apart() -> IdentifiabilityWarnings:
    """Return the warnings where placebo comes from a trial with its own scanner."""
    return warnings_of(ARM, (ARM > 0).astype(int), ["A" if arm == 0 else "B" for arm in ARM])


@pytest.fixture(scope="module")
def mixed() -> IdentifiabilityWarnings:
    """Return the warnings where both trials randomised the arms and used the same scanner."""
    return warnings_of(ARM, np.zeros(CASES, int), [f"{'AB'[which]}" for which in RANDOMISED])


def probe(
    warnings: IdentifiabilityWarnings, target: str, *, within: str | None = None
) -> Estimate | None:
    """Return the AUC with which the images of week 0 tell the target."""
    return next(
        row.leakage.auc
        for row in warnings.leakage_probes
        if (row.target, row.within_trial, row.sessions) == (target, within, ("m00",))
    )


def test_two_scanners_are_detected(apart: IdentifiabilityWarnings) -> None:
    assert probe(apart, "trial").low > 0.95
    assert probe(apart, "arm").low > 0.6
    opening = "The trial can be told from the images of m00 (AUC 1.00"
    assert any(sentence.startswith(opening) for sentence in texts(apart.warnings))


def test_a_scanner_does_not_predict_arms_randomised_within_its_trial(
    apart: IdentifiabilityWarnings,
) -> None:
    auc = probe(apart, "arm", within="B")
    assert auc.low < 0.5 < auc.high


def test_exchangeable_images_are_chance(mixed: IdentifiabilityWarnings) -> None:
    for of in ("trial", "arm"):
        auc = probe(mixed, of)
        assert auc.low < 0.5 < auc.high
        assert auc.high - auc.low < 0.4
    assert any("does not tell the trial" in sentence for sentence in texts(mixed.warnings))
    assert not any("can be told" in sentence for sentence in texts(mixed.warnings))


def test_the_interval_covers_chance_at_about_its_nominal_rate() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for run in range(40):
        features = rng.normal(size=(80, 6))
        label = ["ab"[flag] for flag in rng.integers(0, 2, 80)]
        auc = leakage_auc(features, label, Bootstrap(100, run)).auc
        covered += auc.low < 0.5 < auc.high
    assert covered >= 35  # 38 are expected of 40; without the widening it was 29


def test_arms_that_share_no_trial_are_named(apart: IdentifiabilityWarnings) -> None:
    assert apart.positivity.pairs_without_common_trial == (
        ("placebo", "interferon"), ("placebo", "ocrelizumab"),
    )  # fmt: skip
    assert texts(apart.warnings)[0] == (
        "Placebo never shares a trial with interferon and ocrelizumab: no randomised comparison "
        "of them stands behind a forecast."
    )
    assert apart.positivity.cases_by_trial["B"] == {
        "placebo": 0, "interferon": 40, "ocrelizumab": 40,
    }  # fmt: skip


def test_arms_that_share_no_trial_with_the_same_others_are_named_together() -> None:
    trials = {"A": "S", "B": "S", "C": "T", "D": "U", "E": "T"}
    positive = positivity(list(trials), list(trials.values()), arms=tuple(trials))
    assert [one.text.split(":")[0] for one in coded_warnings([], positive, baseline="m00")] == [
        "A and B never share a trial with C, D and E",
        "C and E never share a trial with D",
    ]


def test_one_trial_an_arm_identifies_no_contrast() -> None:
    warnings = warnings_of(ARM, np.zeros(CASES, int), [f"T{arm}" for arm in ARM])
    assert "no contrast between arms is identified" in texts(warnings.warnings)[0]
    assert "placebo in T0, interferon in T1 and ocrelizumab in T2" in texts(warnings.warnings)[0]
    assert [row.within_trial for row in warnings.leakage_probes] == [None] * 4


def test_arms_of_one_trial_give_no_warning(mixed: IdentifiabilityWarnings) -> None:
    assert mixed.positivity.pairs_without_common_trial == ()
    assert not any("share" in sentence for sentence in texts(mixed.warnings))


def test_a_store_without_trials_identifies_no_contrast() -> None:
    warnings = warnings_of(ARM, np.zeros(CASES, int), [None] * CASES)
    assert "The data name no trial" in texts(warnings.warnings)[0]
    assert warnings.positivity.cases_without_trial == CASES
    assert probe(warnings, "trial") is None


def test_overlap_is_high_only_where_patients_look_alike(
    apart: IdentifiabilityWarnings, mixed: IdentifiabilityWarnings
) -> None:
    assert apart.positivity.arms["placebo"].overlap < 0.05
    assert any("look like nobody who received placebo" in words for words in texts(apart.warnings))
    assert mixed.positivity.arms["placebo"].overlap > 0.8
    assert apart.positivity.arms["placebo"].offered_share == pytest.approx(1 / 3)


def test_an_arm_with_too_few_patients_is_excluded_by_name() -> None:
    features = np.random.default_rng(0).normal(size=(43, 3))
    label = ["a"] * 20 + ["b"] * 20 + ["c"] * 3
    warnings = leakage_auc(features, label, BOOTSTRAP)
    assert (warnings.classes, warnings.excluded_classes, warnings.cases) == (("a", "b"), ("c",), 40)
    assert overlap_by_arm(features, label, arms=("a", "b", "c"), seed=0)["c"] is None


def test_an_arm_that_nobody_received_has_no_trial() -> None:
    table = positivity(["a", "a"], ["T", "T"], arms=("a", "b"))
    assert table.arms["b"] == ArmPositivity(cases=0, trials=(), overlap=None, offered_share=0.0)
    assert table.pairs_without_common_trial == ()


def test_appearance_features_of_a_missing_image_are_nan() -> None:
    present = np.ones((3, 4), bool)
    present[1, 0] = False
    flair = np.stack([head(np.random.default_rng(0), scanner=0)] * 3).astype(np.float16)
    appearance = dict(
        zip(APPEARANCE_FEATURES, appearance_features(flair, present, (3.0, 1.0, 1.0)), strict=True)
    )
    assert not np.isnan(appearance["noise_w000"])
    assert np.isnan(appearance["noise_w048"])


def test_appearance_features_read_nothing_of_w096() -> None:
    present = np.ones((3, 4), bool)
    flair = np.stack([head(np.random.default_rng(0), scanner=0)] * 3).astype(np.float16)
    other = flair.copy()
    other[2] = 0.5
    spacing = (3.0, 1.0, 1.0)
    assert np.array_equal(
        appearance_features(flair, present, spacing), appearance_features(other, present, spacing)
    )
