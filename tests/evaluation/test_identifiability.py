"""What the data cannot show of treatments is found and said, and not said where it is not so."""

import numpy as np
import pytest

from lesioncast.evaluation.causal.identifiability import identifiability_warnings, warning_sentences
from lesioncast.evaluation.causal.leakage_probe import leakage_auc
from lesioncast.evaluation.causal.positivity import overlap, positivity
from lesioncast.evaluation.features.appearance import APPEARANCE_FEATURES, appearance_features
from lesioncast.evaluation.features.image_features import IMAGE_FEATURES
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.imaging.regions import REGIONS

ARMS = ("placebo", "interferon", "ocrelizumab")
BOOTSTRAP = Bootstrap(200, 0)
SHAPE = (5, 20, 20)
CASES = 120


def head(rng: np.random.Generator, *, scanner: int) -> np.ndarray:
    """A ball of tissue in air; the second scanner has twice the noise and some shading."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in SHAPE], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    noise = rng.normal(0, 0.04 * (1 + scanner), SHAPE)
    shade = 0.1 * scanner * axes[2]
    return np.where(inside, 0.2 + shade, -1.0) + noise


def outcomes(arm: np.ndarray, scanner: np.ndarray, *, seed: int = 0) -> OutcomeTable:
    """Cases scanned at w000 and w048 by the same scanner; lesion scalars are of nobody."""
    rng = np.random.default_rng(seed)
    present = np.ones((3, 4), bool)
    looks = [
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
        net2_count_w048=np.zeros(n),
        regions=np.zeros((n, len(REGIONS))),
        trial=(None,) * n,
        appearance=np.array(looks),
    )


def warned(arm: np.ndarray, scanner: np.ndarray, trial: list[str | None]) -> dict:
    parts = [outcomes(arm[half], scanner[half], seed=1 + half.start) for half in HALVES]
    return identifiability_warnings(
        parts, trial, arms=ARMS, sessions=("w000", "w048"), bootstrap=BOOTSTRAP
    )


HALVES = (slice(0, CASES // 2), slice(CASES // 2, CASES))
ARM = np.arange(CASES) % 3
BY_LOT = np.random.default_rng(3).integers(0, 2, CASES)


@pytest.fixture(scope="module")
def apart() -> dict:
    """Placebo comes from a trial with a scanner of its own."""
    return warned(ARM, (ARM > 0).astype(int), ["A" if arm == 0 else "B" for arm in ARM])


@pytest.fixture(scope="module")
def mixed() -> dict:
    """Arms were drawn by lot in both trials, whose scanners are the same."""
    return warned(ARM, np.zeros(CASES, int), [f"{'AB'[which]}" for which in BY_LOT])


def probe(record: dict, of: str, *, within: str | None = None) -> dict:
    return next(
        row["auc"]
        for row in record["leak"]
        if (row["of"], row["within"], row["sessions"]) == (of, within, ["w000"])
    )


def test_two_scanners_are_found_out(apart: dict) -> None:
    assert probe(apart, "trial")["low"] > 0.95
    assert probe(apart, "arm")["low"] > 0.6
    told = "The trial can be told from the images of week 0 (AUC 1.00"
    assert any(sentence.startswith(told) for sentence in apart["sentences"])


def test_a_scanner_says_nothing_of_arms_that_were_drawn_by_lot_within_its_trial(
    apart: dict,
) -> None:
    auc = probe(apart, "arm", within="B")
    assert auc["low"] < 0.5 < auc["high"]


def test_exchangeable_images_are_chance(mixed: dict) -> None:
    for of in ("trial", "arm"):
        auc = probe(mixed, of)
        assert auc["low"] < 0.5 < auc["high"]
        assert auc["high"] - auc["low"] < 0.4
    assert any("does not tell the trial" in sentence for sentence in mixed["sentences"])
    assert not any("can be told" in sentence for sentence in mixed["sentences"])


def test_the_interval_covers_chance_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for run in range(40):
        features = rng.normal(size=(80, 6))
        label = ["ab"[flag] for flag in rng.integers(0, 2, 80)]
        auc = leakage_auc(features, label, Bootstrap(100, run))["auc"]
        covered += auc["low"] < 0.5 < auc["high"]
    assert covered >= 35  # 38 are expected of 40; without the widening it was 29


def test_arms_that_share_no_trial_are_named(apart: dict) -> None:
    assert apart["positivity"]["never_together"] == [
        ["placebo", "interferon"], ["placebo", "ocrelizumab"],
    ]  # fmt: skip
    assert apart["sentences"][0] == (
        "Placebo never shares a trial with interferon and ocrelizumab: no randomised comparison "
        "of them stands behind a forecast."
    )
    assert apart["positivity"]["trials"]["B"] == {
        "placebo": 0, "interferon": 40, "ocrelizumab": 40,
    }  # fmt: skip


def test_arms_that_were_apart_from_the_same_others_are_named_together() -> None:
    trials = {"A": "S", "B": "S", "C": "T", "D": "U", "E": "T"}
    positive = positivity(list(trials), list(trials.values()), arms=tuple(trials))
    assert [words.split(":")[0] for words in warning_sentences([], positive)] == [
        "A and B never share a trial with C, D and E",
        "C and E never share a trial with D",
    ]


def test_one_trial_an_arm_identifies_no_contrast() -> None:
    record = warned(ARM, np.zeros(CASES, int), [f"T{arm}" for arm in ARM])
    assert "no contrast between arms is identified" in record["sentences"][0]
    assert "placebo in T0, interferon in T1 and ocrelizumab in T2" in record["sentences"][0]
    assert [row["within"] for row in record["leak"]] == [None] * 4


def test_arms_of_one_trial_are_not_warned_of(mixed: dict) -> None:
    assert mixed["positivity"]["never_together"] == []
    assert not any("share" in sentence for sentence in mixed["sentences"])


def test_a_store_that_names_no_trial_is_said_to_identify_nothing() -> None:
    record = warned(ARM, np.zeros(CASES, int), [None] * CASES)
    assert "The data name no trial" in record["sentences"][0]
    assert record["positivity"]["without_trial"] == CASES
    assert probe(record, "trial") is None


def test_support_is_common_only_where_patients_look_alike(apart: dict, mixed: dict) -> None:
    assert apart["positivity"]["arms"]["placebo"]["overlap"] < 0.05
    assert any("look like nobody who received placebo" in words for words in apart["sentences"])
    assert mixed["positivity"]["arms"]["placebo"]["overlap"] > 0.8
    assert apart["positivity"]["arms"]["placebo"]["offered"] == pytest.approx(1 / 3)


def test_an_arm_of_too_few_patients_is_left_out_by_name() -> None:
    features = np.random.default_rng(0).normal(size=(43, 3))
    label = ["a"] * 20 + ["b"] * 20 + ["c"] * 3
    record = leakage_auc(features, label, BOOTSTRAP)
    assert (record["classes"], record["left_out"], record["cases"]) == (["a", "b"], ["c"], 40)
    assert overlap(features, label, arms=("a", "b", "c"), seed=0)["c"] is None


def test_an_arm_that_nobody_received_is_said_so() -> None:
    table = positivity(["a", "a"], ["T", "T"], arms=("a", "b"))
    assert table["arms"]["b"] == {
        "cases": 0, "trials": [], "overlap": None, "offered": 0.0,
    }  # fmt: skip
    assert table["never_together"] == []


def test_looks_lack_what_the_images_lack() -> None:
    present = np.ones((3, 4), bool)
    present[1, 0] = False
    flair = np.stack([head(np.random.default_rng(0), scanner=0)] * 3).astype(np.float16)
    looks = dict(
        zip(APPEARANCE_FEATURES, appearance_features(flair, present, (3.0, 1.0, 1.0)), strict=True)
    )
    assert not np.isnan(looks["noise_w000"])
    assert np.isnan(looks["noise_w048"])


def test_looks_read_nothing_of_w096() -> None:
    present = np.ones((3, 4), bool)
    flair = np.stack([head(np.random.default_rng(0), scanner=0)] * 3).astype(np.float16)
    other = flair.copy()
    other[2] = 0.5
    spacing = (3.0, 1.0, 1.0)
    assert np.array_equal(
        appearance_features(flair, present, spacing), appearance_features(other, present, spacing)
    )
