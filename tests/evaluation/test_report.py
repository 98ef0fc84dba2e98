"""A whole evaluation on made-up outcomes: an oracle is perfect, a shuffled forecast is chance."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.evaluation.analysis.scoring import EvaluationContext
from lesioncast.evaluation.evaluate import CounterfactualCounts, EvaluationResult, evaluate
from lesioncast.evaluation.features.image_features import IMAGE_FEATURES
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.calibration import reliability_curve
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummaries, EnsembleSummary
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask, compare_masks
from lesioncast.evaluation.reporting.files import write_evaluation
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.markdown.report import describe_monotonicity, render_markdown
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.ensemble import ExpectedOutcomes, stratified_error
from lesioncast.markdown import DASH, format_estimate

ARMS = PAPER_ARM_NAMES
RATE = np.array([0.6, 0.55, 0.5, 0.35, 0.25, 0.0])
SETTINGS = EvaluationSettings(samples=8, bootstrap=100, monte_carlo_runs=8)
SAMPLES = SETTINGS.samples
MM1 = (3.0, 1.0, 1.0)
MM3 = (3.0, 3.0, 3.0)


def outcomes(cases: int, *, seed: int, first: int = 0) -> OutcomeTable:
    """Each patient has a burden, which one scalar shows and which decides activity with the arm."""
    rng = np.random.default_rng([seed, 7])
    arm = np.arange(cases) % len(ARMS)
    burden = rng.random(cases)
    active = burden < RATE[arm]
    count = (active * (1 + rng.poisson(2, cases))).astype(float)
    return OutcomeTable(
        case=tuple(range(first, first + cases)),
        subjects=tuple(f"sub-{first + row:04d}" for row in range(cases)),
        arm=arm,
        image_features=np.pad(burden[:, None], ((0, 0), (0, len(IMAGE_FEATURES) - 1))),
        plain=count,
        opened=np.maximum(count - 1, 0),
        net2_count_w048=np.where(arm == 0, np.nan, rng.poisson(1, cases)),
        regions=np.column_stack([active, count > 2]).astype(float),
        trial=(None,) * cases,
    )


def covaried(given: OutcomeTable) -> OutcomeTable:
    """Outcomes whose burden only a covariate shows; the scalar is of someone else."""
    mixed = np.random.default_rng(4).permutation(given.image_features)
    return replace(given, image_features=mixed, covariates=given.image_features[:, :1])


def certain(test: OutcomeTable, counts: np.ndarray) -> dict[tuple[int, int], EnsembleSummary]:
    """Every sample of a case says the same count; opening takes one lesion."""
    return {
        (case, int(arm)): EnsembleSummary(
            plain=np.full(SAMPLES, int(count)), opened=np.full(SAMPLES, max(int(count) - 1, 0))
        )
        for case, arm, count in zip(test.case, test.arm, counts, strict=True)
    }


def assessed(
    test: OutcomeTable,
    counts: EnsembleSummaries,
    *,
    forced: tuple[int, ...] = (),
    spacing: tuple[float, float, float] = MM3,
    stated: dict[int, tuple[ExpectedOutcomes, ...]] | None = None,
    truth: CounterfactualCounts | None = None,
) -> EvaluationResult:
    context = EvaluationContext(ARMS, spacing, "f" * 64, 0, ("Research use only.",))
    train = outcomes(600, seed=1)
    return evaluate(
        train,
        test,
        counts,
        forced=forced,
        context=context,
        settings=SETTINGS,
        stated=stated,
        truth=truth,
    )


TEST = outcomes(240, seed=2, first=1000)


@pytest.fixture(scope="module")
def oracle() -> dict:
    return assessed(TEST, certain(TEST, TEST.plain)).record


@pytest.fixture(scope="module")
def shuffled() -> dict:
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    return assessed(TEST, certain(TEST, mixed)).record


def pooled(record: dict, method: str, metric: str) -> dict:
    variant = record["variants"]["plain"]
    for part in ("activity", "count"):
        scores = variant[part]["pooled"]["methods"].get(method, {})
        if metric in scores:
            return scores[metric]
    raise KeyError(metric)


def test_an_oracle_has_perfect_scores_everywhere(oracle: dict) -> None:
    for metric, perfect in {"auc": 1, "ap": 1, "auc_within": 1, "log_mse": 0, "crps": 0}.items():
        assert pooled(oracle, "ensemble", metric)["value"] == pytest.approx(perfect)
        assert pooled(oracle, "ensemble", metric)["low"] == pytest.approx(perfect)
    assert pooled(oracle, "ensemble", "brier")["value"] == 0
    assert pooled(oracle, "ensemble_log_mean", "log_mse")["value"] == pytest.approx(0)


def test_a_shuffled_forecast_is_chance_and_loses_to_the_arm_rate(shuffled: dict) -> None:
    auc = pooled(shuffled, "ensemble", "auc")
    assert auc["low"] < 0.5 < auc["high"]
    assert pooled(shuffled, "ensemble", "ap")["value"] == pytest.approx(0.38, abs=0.09)
    gap = next(
        row
        for row in shuffled["variants"]["plain"]["differences"]
        if (row["metric"], row["minus"]) == ("auc", "arm_rate")
    )
    assert gap["high"] < 0


def test_baselines_rank_as_they_must(oracle: dict) -> None:
    """Monte Carlo is below the arm's rate, which is below a scalar that shows the burden."""
    aucs = [
        pooled(oracle, key, "auc")["value"] for key in ("monte_carlo", "arm_rate", "regression")
    ]
    assert aucs == sorted(aucs)
    assert pooled(oracle, "arm_rate", "auc_within")["value"] == pytest.approx(0.5)
    assert pooled(oracle, "regression", "auc_within")["value"] > 0.9
    log_mse = [
        pooled(oracle, key, "log_mse")["value"]
        for key in ("arm_rate", "arm_log_mean", "regression")
    ]
    assert log_mse == sorted(log_mse, reverse=True)


def test_baselines_do_not_depend_on_the_forecast(oracle: dict, shuffled: dict) -> None:
    for key in ("monte_carlo", "arm_rate", "regression"):
        assert pooled(oracle, key, "auc") == pooled(shuffled, key, "auc")


def test_what_covariates_add_to_a_regression_is_reported_paired() -> None:
    train, test = covaried(outcomes(600, seed=1)), covaried(TEST)
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    counts = certain(test, test.plain)
    found = evaluate(train, test, counts, forced=(), context=context, settings=SETTINGS)
    gaps = {
        (row["of"], row["minus"], row["metric"]): row
        for row in found.record["variants"]["plain"]["differences"]
    }
    assert gaps["regression_covariates", "regression", "auc"]["low"] > 0.1
    assert gaps["ensemble", "regression_covariates", "auc"]["value"] > 0
    text = render_markdown(found.record)
    assert "regression on image features and covariates |" in text


def test_without_covariates_there_is_one_regression(oracle: dict) -> None:
    assert [key for key in oracle["methods"] if key.startswith("regression")] == ["regression"]
    minus = {row["minus"] for row in oracle["variants"]["plain"]["differences"]}
    assert minus == {"arm_rate", "regression"}


def test_an_arm_without_active_cases_is_undefined_and_says_how_many(oracle: dict) -> None:
    group = oracle["variants"]["plain"]["activity"]["ocrelizumab"]
    assert (group["cases"], group["positives"]) == (40, 0)
    for method in group["methods"].values():
        assert method["auc"]["value"] is None
        assert method["ap"]["value"] is None
    lines = [
        line for line in render_markdown(oracle).splitlines() if line.startswith("| ocrelizumab")
    ]
    assert f"| 0 of 40 | {DASH} |" in lines[0]


def test_published_figures_stand_in_a_column_of_their_own(oracle: dict) -> None:
    text = render_markdown(oracle)
    assert "published model, baseline (other data)" in text
    placebo = next(
        line for line in text.splitlines() if line.startswith("| placebo | ") and " of " in line
    )
    assert placebo.endswith("| 0.783, 0.513 |")


def test_counts_are_reported_with_and_without_the_opening_where_it_does_something() -> None:
    counts = certain(TEST, TEST.plain)
    fine = assessed(TEST, counts, spacing=MM1).record
    assert list(fine["variants"]) == ["plain", "opened", "opened_forecast"]
    means = {
        name: (
            variant["count"]["pooled"]["true_mean"],
            variant["count"]["pooled"]["methods"]["ensemble"]["mean"],
        )
        for name, variant in fine["variants"].items()
    }
    plain, opened = TEST.plain.mean(), TEST.opened.mean()
    assert means["plain"] == pytest.approx((plain, plain))
    assert means["opened"] == pytest.approx((opened, opened))
    assert means["opened_forecast"] == pytest.approx((plain, opened))
    coarse = assessed(TEST, counts).record
    assert list(coarse["variants"]) == ["plain"]
    assert coarse["opening"] == {"mm": 5.0, "element": [1, 1, 1], "idle": True}


def test_the_count_is_off_by_what_the_forecast_draws_too_many_or_too_few() -> None:
    arm = TEST.arm == 0
    for extra, said in ((2, "too many"), (0, "within what chance allows"), (-1, "too few")):
        drawn = np.maximum(TEST.plain + extra, 0)
        record = assessed(TEST, certain(TEST, drawn), spacing=MM1).record
        groups = record["variants"]["plain"]["count"]
        for name, member in (("pooled", slice(None)), ("placebo", arm)):
            bias = groups[name]["methods"]["ensemble"]["bias"]
            assert bias["value"] == pytest.approx((drawn - TEST.plain)[member].mean())
            assert bias["low"] <= bias["value"] <= bias["high"]
        text = next(each.text for each in findings(record) if each.title == "How many new lesions?")
        assert said in text
        assert (
            f"| {format_estimate(groups['pooled']['methods']['ensemble']['bias'], digits=2)} |"
            in (render_markdown(record))
        )


def box_of(lesions: float) -> np.ndarray:
    """A mask with that many lesions of 18 mm3 in a row along w."""
    mask = np.zeros((2, 4, 64), bool)
    mask[0, 1:3, : 4 * int(lesions) : 4] = mask[0, 1:3, 1 : 4 * int(lesions) : 4] = True
    return mask


def laid_out(given: OutcomeTable, counts: np.ndarray) -> dict[tuple[int, int], EnsembleSummary]:
    """As `certain`, with masks; the first two lesions lie in white matter, others in cortex."""
    labels = np.full((2, 4, 64), 2, np.int16)
    labels[:, :, 8:] = 3
    return {
        key: replace(
            tally,
            spatial=compare_masks(
                np.stack([box_of(count)] * SAMPLES),
                ObservedMask(box_of(true), labels),
                (3.0, 1.5, 1.0),
            ),
        )
        for (key, tally), count, true in zip(
            certain(given, counts).items(), counts, given.plain, strict=True
        )
    }


VALIDATION = outcomes(120, seed=3, first=5000)


def full(counts: np.ndarray) -> EvaluationResult:
    """The test cases' masks show `counts`; of the validation cases the samples tell the truth."""
    tallies = laid_out(TEST, counts) | certain(VALIDATION, VALIDATION.plain)
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    train = outcomes(600, seed=1)
    train = replace(train, trial=tuple("bravo" if arm < 2 else None for arm in train.arm))
    return evaluate(
        train, TEST, tallies, forced=(), context=context, settings=SETTINGS, validation=VALIDATION
    )


def test_an_oracles_masks_regions_and_intervals_are_perfect() -> None:
    record = full(TEST.plain).record
    for region, positives in zip(("white_matter", "cortex"), TEST.regions.sum(axis=0), strict=True):
        group = record["regional"]["regions"][region]
        assert group["positives"] == positives
        for method in ("ensemble", "sample"):
            assert all(score["value"] == 1 for score in group["methods"][method].values())
        assert group["methods"]["monte_carlo"]["balanced_accuracy"]["value"] < 0.6
    masks = record["masks"]["groups"]["pooled"]
    assert masks["f1_sample"]["value"] == masks["f1_majority"]["value"] == 1
    assert masks["energy"]["value"] == masks["diversity"]["value"] == 0
    assert masks["empty"]["silent"]["value"] == 1
    learned = record["calibration"]
    assert learned["validation"] == {"cases": 120, "positives": int((VALIDATION.plain > 0).sum())}
    assert [each["coverage"]["value"] for each in learned["counts"]] == [1, 1]
    assert [each["mean_width"] for each in learned["counts"]] == [0, 0]
    brier = record["probabilities"]["ensemble_recalibrated"]
    assert brier["brier"]["value"] < 0.01
    assert brier["resolution"]["value"] == pytest.approx(brier["uncertainty"]["value"])
    (contrast,) = record["contrasts"]["rows"]
    assert (contrast["trial"], contrast["arm"], contrast["cases"]) == (
        "bravo", "laquinimod", [100, 100],
    )  # fmt: skip
    assert ["placebo", "laquinimod"] not in record["contrasts"]["not_identified"]
    assert ["placebo", "ocrelizumab"] in record["contrasts"]["not_identified"]
    where = next(each.text for each in findings(record) if each.title == "Where will they lie?")
    assert "an F1 of 1.000 (1.000 to 1.000)" in where
    assert "together are nearer to the observed masks than masks without" in where
    assert "cerebral white matter 1.000 (1.000 to 1.000), cerebral cortex 1.000" in where
    text = json.dumps(record, allow_nan=False)
    assert render_markdown(json.loads(text)) == render_markdown(record)


def test_a_shuffled_forecasts_masks_and_regions_are_chance_and_its_intervals_are_seen_to_fail() -> (
    None
):
    mixed = np.random.default_rng(9).permutation(TEST.plain)
    record = full(mixed).record
    for group in record["regional"]["regions"].values():
        balanced = group["methods"]["ensemble"]["balanced_accuracy"]
        assert balanced["value"] == pytest.approx(0.5, abs=0.12)
    assert record["masks"]["groups"]["pooled"]["f1_sample"]["value"] < 0.6
    assert record["probabilities"]["ensemble"]["resolution"]["value"] < 0.02
    assert record["calibration"]["counts"][1]["coverage"]["high"] < 0.9


def test_the_cohort_is_described_by_split_and_arm() -> None:
    row = full(TEST.plain).record["cohort"]
    assert list(row) == ["train", "test", "validation"]
    avonex, of_arm = row["test"]["avonex"], TEST.arm == 2
    assert avonex["cases"] == 40
    assert avonex["count"] == {
        "w048": pytest.approx(TEST.net2_count_w048[of_arm].mean()),
        "w096": pytest.approx(TEST.plain[of_arm].mean()),
    }
    assert avonex["activity"]["w096"] == pytest.approx((TEST.plain[of_arm] > 0).mean())
    assert row["test"]["placebo"]["count"]["w048"] is None
    assert row["train"]["total"]["cases"] == 600


def ladder_counts() -> tuple[dict, tuple[int, ...]]:
    """Cases 1000 to 1011 under every arm: sample k is active where k / 8 is below the rate."""
    counts = certain(TEST, TEST.plain)
    forced = TEST.case[:12]
    for case in forced:
        for arm, rate in enumerate(np.linspace(1, 0, len(ARMS))):
            active = (np.arange(SAMPLES) / SAMPLES < rate).astype(int)
            counts[case, arm] = EnsembleSummary(plain=active, opened=active)
    return counts, forced


def test_the_ladder_is_the_mean_p_active_of_the_same_cases_under_each_arm() -> None:
    counts, forced = ladder_counts()
    ladder = assessed(TEST, counts, forced=forced).record["ladder"]
    rates = [row["p_active"]["value"] for row in ladder["arms"].values()]
    assert rates == pytest.approx([1.0, 7 / 8, 5 / 8, 4 / 8, 2 / 8, 0.0])
    assert ladder["falling"]
    assert ladder["cases"] == 12
    assert ladder["first_minus_last"]["value"] == pytest.approx(1.0)


def stated(p_active: float, lesions: float = 0.0) -> ExpectedOutcomes:
    """As many lesions in every future."""
    return ExpectedOutcomes(p_active, lesions, float(np.log1p(lesions)))


def test_what_the_model_states_is_scored_in_place_of_the_share_of_its_samples() -> None:
    """As drawn: a stated chance says nothing of what the opening leaves."""
    counts, forced = ladder_counts()
    drawn = assessed(TEST, counts, forced=forced, spacing=(3.0, 1.0, 1.0)).record
    for key, tally in counts.items():
        counts[key] = replace(tally, stated=stated(0.9 if tally.plain.any() else 0.2))
    record = assessed(TEST, counts, forced=forced, spacing=(3.0, 1.0, 1.0)).record
    plain, opened = (
        record["variants"][name]["activity"]["pooled"]["methods"]["ensemble"]["mean"]
        for name in ("plain", "opened")
    )
    active = (TEST.plain > 0).mean()
    assert plain == pytest.approx(0.9 * active + 0.2 * (1 - active), abs=0.05)
    before = drawn["variants"]["opened"]["activity"]["pooled"]["methods"]["ensemble"]["mean"]
    assert opened == before
    for name in ("ensemble", "arm_rate"):  # by the mean of what is drawn, as in the paper
        assert pooled(record, name, "log_mse") == pooled(drawn, name, "log_mse")


def test_the_stated_log_count_is_scored_in_place_of_the_mean_over_samples() -> None:
    counts = certain(TEST, np.random.default_rng(9).permutation(TEST.plain))
    assert pooled(assessed(TEST, counts).record, "ensemble_log_mean", "log_mse")["value"] > 0.1
    for (case, arm), tally in counts.items():
        true = TEST.plain[TEST.case.index(case)]
        counts[case, arm] = replace(tally, stated=stated(0.5, true))
    record = assessed(TEST, counts).record
    assert pooled(record, "ensemble_log_mean", "log_mse")["value"] == pytest.approx(0)
    assert pooled(record, "ensemble", "log_mse")["value"] > 0.1
    (gap,) = (
        row
        for row in record["variants"]["plain"]["differences"]
        if row["of"] == "ensemble_log_mean"
    )
    assert (gap["minus"], gap["metric"]) == ("regression", "log_mse")
    assert gap["value"] == -pooled(record, "regression", "log_mse")["value"]
    text = next(each.text for each in findings(record) if each.title == "How many new lesions?")
    assert "By the mean of log counts it is 0.00, better than a regression" in text


def test_the_ladder_of_what_is_stated_is_that_of_every_test_case() -> None:
    counts, forced = ladder_counts()
    slopes = np.random.default_rng(3).random(len(TEST.case))
    known = {
        case: tuple(stated(slope * share) for share in np.linspace(1, 0, len(ARMS)))
        for case, slope in zip(TEST.case, slopes, strict=True)
    }
    truth = {(case, arm): int(arm < 2) for case in TEST.case for arm in range(len(ARMS))}
    record = assessed(TEST, counts, forced=forced, stated=known, truth=truth).record
    ladder, drawn = record["ladder"], assessed(TEST, counts, forced=forced).record["ladder"]
    assert (ladder["cases"], drawn["cases"]) == (len(TEST.case), 12)
    rates = [row["p_active"]["value"] for row in ladder["arms"].values()]
    assert rates == pytest.approx(slopes.mean() * np.linspace(1, 0, len(ARMS)))
    assert [row["true_rate"] for row in ladder["arms"].values()] == [1, 1, 0, 0, 0, 0]
    assert all(row["mc_error"] is None for row in ladder["arms"].values())
    assert any(row["mc_error"] > 0 for row in drawn["arms"].values())
    assert "as the networks state it" in render_markdown(record)
    assert assessed(TEST, counts, stated=known).record["ladder"]["cases"] == len(TEST.case)


def test_a_step_upwards_counts_only_where_chance_does_not_explain_it() -> None:
    counts, forced = ladder_counts()
    for case in forced:
        counts[case, 2], counts[case, 1] = counts[case, 1], counts[case, 2]
    ladder = assessed(TEST, counts, forced=forced).record["ladder"]
    assert not ladder["falling"]
    assert ladder["rising"] == ["avonex"]
    assert describe_monotonicity(ladder) == "P(active) rises, by more than chance, to avonex."


def test_a_step_upwards_of_one_case_in_twelve_may_be_chance() -> None:
    counts, forced = ladder_counts()
    for case in forced:
        counts[case, 2] = counts[case, 1]
    counts[forced[0], 2] = counts[forced[0], 0]
    ladder = assessed(TEST, counts, forced=forced).record["ladder"]
    assert not ladder["falling"]
    assert ladder["rising"] == []


def test_the_truth_stands_beside_the_ladder_where_it_is_known() -> None:
    counts, forced = ladder_counts()
    truth = {
        (case, arm): 6 - arm - place % 2 for place, case in enumerate(forced) for arm in range(6)
    }
    record = assessed(TEST, counts, forced=forced, truth=truth).record
    rows = list(record["ladder"]["arms"].values())
    assert [row["true_rate"] for row in rows] == [1, 1, 1, 1, 1, 0.5]
    means = record["effects"]["mean_count"].values()
    assert [row["true"] for row in means] == [5.5, 4.5, 3.5, 2.5, 1.5, 0.5]
    assert [row["forecast"] for row in means] == pytest.approx([1, 7 / 8, 5 / 8, 4 / 8, 2 / 8, 0])
    assert "truly active" in render_markdown(record)
    unknown = assessed(TEST, counts, forced=forced).record["ladder"]["arms"]["placebo"]
    assert unknown["true_rate"] is None


def test_the_steps_of_the_ladder_are_paired_over_cases() -> None:
    counts, forced = ladder_counts()
    rows = assessed(TEST, counts, forced=forced).record["ladder"]["arms"]
    assert rows["placebo"]["minus_previous"] is None
    step = rows["laquinimod"]["minus_previous"]
    assert (step["value"], step["low"], step["high"]) == pytest.approx((-1 / 8,) * 3)


def test_the_ladders_error_shrinks_with_the_cases_since_each_has_its_own_draws() -> None:
    draws = np.random.default_rng(0).random((500, 30, 4)) < 0.3  # 500 runs of 30 cases, 4 draws
    errors = [stratified_error(run.astype(np.float64)) for run in draws]
    assert np.mean(errors) == pytest.approx(draws.mean(axis=(1, 2)).std(), rel=0.1)


def test_a_perfectly_calibrated_forecast_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(20000)
    for mean, share, low, high in reliability_curve(rng.random(20000) < chance, chance, bins=5):
        assert share == pytest.approx(mean, abs=0.025)
        assert low < share < high


def test_reliability_keeps_equal_probabilities_together() -> None:
    chance = np.repeat([0.0, 1.0], [90, 10])
    rows = reliability_curve(chance > 0, chance, bins=8)
    assert [row[:2] for row in rows] == [(0.0, 0.0), (1.0, 1.0)]


def test_an_interval_is_shown_only_where_there_is_one() -> None:
    assert format_estimate({"value": 0.81234, "low": 0.7, "high": 0.9}) == "0.812 (0.700 to 0.900)"
    assert format_estimate({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert format_estimate({"value": None, "low": None, "high": None}) == DASH


def test_an_evaluation_is_written_whole(tmp_path: Path) -> None:
    counts, forced = ladder_counts()
    assessment = assessed(TEST, counts, forced=forced)
    write_evaluation(assessment, tmp_path, forced=forced, case=TEST.case)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "report.html", "metrics.json", "tables.md", "estimates.csv", "cases.csv", "evaluation.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "metrics.json").read_text())["samples"] == SAMPLES
    rows = (tmp_path / "cases.csv").read_text().splitlines()
    assert len(rows) == 241
    assert rows[1].startswith("sub-1000,placebo,")
    assert rows[1].split(",")[-6:] == ["1.0000", "0.8750", "0.6250", "0.5000", "0.2500", "0.0000"]
    assert rows[-1].endswith(",,,,,,")
    assert (tmp_path / "evaluation.png").read_bytes().startswith(b"\x89PNG")
