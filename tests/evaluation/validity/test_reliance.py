"""What a forecast rests on: an oracle on images loses them by permutation, an arm rate does not."""

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lesioncast.bundle.bundle import load_bundle
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.analysis.validity.reliance import (
    ALL_INPUTS,
    ARM_ALONE,
    BASELINE_FLAIR,
    OTHER_PATIENT,
    WITHOUT_COVARIATES,
    WITHOUT_GADOLINIUM,
    WITHOUT_MASKS,
    InputPredictions,
    RelianceScores,
    reliance_report,
)
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.input_ablation import (
    Predict,
    PriorInputs,
    draw_donors,
    predict_from_parts,
    predictions_by_inputs,
)
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.json_io import report_from_json, report_to_json
from lesioncast.evaluation.reporting.markdown.reliance import NOT_MEASURED, QUESTION
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.forecasting.runtime import make_expectation_predictor, store_reader
from lesioncast.forecasting.sampling import ConditioningArrays, ModelInput
from lesioncast.imaging.channels import parse_channels
from lesioncast.imaging.covariates import Covariate
from tests.evaluation.test_report import ARMS, MM3, RATE, SETTINGS, TEST, certain, outcomes
from tests.support.forecast import NET2_W048, write_bundle, write_store

CHANNELS = parse_channels(("w000/flair", "w000/t2", "w048/gad", "w048/net2"))
NET2 = 3
CASES = TEST.cases(opening=False)
BOOTSTRAP = Bootstrap(200, 0)
EVERY_ROW = [
    ALL_INPUTS, WITHOUT_GADOLINIUM, WITHOUT_MASKS, BASELINE_FLAIR, OTHER_PATIENT,
    WITHOUT_COVARIATES, ARM_ALONE,
]  # fmt: skip


def patients() -> PriorInputs:
    """Return the inputs of the test cases: the NET2 mask of w048 shows the later outcome."""
    burden = np.random.default_rng(0).random((len(CASES.arm), len(CHANNELS), 3), np.float32)
    burden[:, NET2, 2] = CASES.count + 1
    age = np.random.default_rng(1).random((len(CASES.arm), 1), np.float32)
    return PriorInputs(burden, age, CASES.arm, no_readings(len(CASES.arm)))


def no_readings(cases: int) -> np.ndarray:
    """Return what a prior without a reader reads off FLAIR."""
    return np.zeros((cases, 1, 1, 0), np.float32)


def ignore_images(inputs: PriorInputs) -> tuple[np.ndarray, np.ndarray]:
    """Predict the rate of the arm."""
    return RATE[inputs.arm], RATE[inputs.arm]


def read_outcome(inputs: PriorInputs) -> tuple[np.ndarray, np.ndarray]:
    """Predict the outcome that the NET2 mask shows, and the rate of the arm without that mask."""
    shown = inputs.burden[:, NET2, 2].astype(float)
    active = np.where(shown > 0, shown > 1, RATE[inputs.arm])
    return active, np.where(shown > 0, np.log(np.maximum(shown, 1)), RATE[inputs.arm])


def predicted(predict: Predict) -> tuple[InputPredictions, ...]:
    return tuple(predictions_by_inputs(predict, patients(), CHANNELS, seed=0))


def report_of(by_inputs: Iterable[InputPredictions]) -> EvaluationReport:
    context = EvaluationContext(ARMS, MM3, "f" * 64, 0)
    inputs = EvaluationInputs(
        outcomes(600, seed=1), TEST, certain(TEST, TEST.plain), by_inputs=tuple(by_inputs)
    )
    return evaluate(inputs, context, SETTINGS).report


def test_a_forecast_that_ignores_images_has_equal_rows_and_the_first_finding_says_so() -> None:
    report = report_of(predicted(ignore_images))
    rows = report.reliance.inputs
    assert list(rows) == EVERY_ROW
    for key, row in rows.items():
        assert row.scores == rows[ALL_INPUTS].scores
        assert row.scores.auc_within_arm.value == pytest.approx(0.5)
        if key != ALL_INPUTS:
            differences = vars(row.minus_all_inputs).values()
            assert {(one.value, one.low, one.high) for one in differences} == {(0.0, 0.0, 0.0)}
    first = findings(report)[0]
    assert first.title == QUESTION
    assert first.text.startswith("It is not shown to rest on the patient's images")


def test_an_oracle_on_images_falls_to_chance_by_the_images_of_another_patient() -> None:
    report = report_of(predicted(read_outcome))
    rows = report.reliance.inputs
    for key in (ALL_INPUTS, WITHOUT_GADOLINIUM, WITHOUT_COVARIATES):
        assert rows[key].scores.auc_within_arm.value == rows[key].scores.auc.value == 1
        assert rows[key].scores.brier.value == 0
        assert rows[key].scores.log_mse.value == pytest.approx(0, abs=1e-12)
    for key in (WITHOUT_MASKS, BASELINE_FLAIR, ARM_ALONE):
        assert rows[key].scores.auc_within_arm.value == pytest.approx(0.5)
        assert rows[key].scores.auc.value == pytest.approx(
            roc_auc_score(CASES.active, RATE[CASES.arm])
        )
    permuted = rows[OTHER_PATIENT]
    within = permuted.scores.auc_within_arm
    assert within.low < 0.5 < within.high
    assert permuted.minus_all_inputs.auc_within_arm.high < -0.3
    # Patients of an arm exchange images, so the mean prediction of each arm is the same.
    assert permuted.mean_probability == pytest.approx(rows[ALL_INPUTS].mean_probability)
    who, reliance, *_ = findings(report)
    assert who.title != QUESTION
    assert reliance.title == QUESTION
    assert "falls from 1.00 (1.00 to 1.00) to 0." in reliance.text
    assert reliance.text.startswith("With the images of another patient")


def test_a_constant_forecast_is_chance_from_every_choice_of_inputs() -> None:
    def constant(inputs: PriorInputs) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(inputs.arm), 0.3), np.full(len(inputs.arm), 0.2)

    report = reliance_report(predicted(constant), CASES, bootstrap=BOOTSTRAP)
    for row in report.inputs.values():
        assert (row.scores.auc.value, row.scores.auc_within_arm.value) == (0.5, 0.5)
        assert row.scores.average_precision.value == pytest.approx(CASES.active.mean())
    assert report.rests_on_images is False


def test_scores_and_paired_differences_equal_an_independent_computation() -> None:
    rng = np.random.default_rng(5)
    rows = np.flatnonzero(rng.random(len(CASES.arm)) < 0.8)
    full = InputPredictions(
        ALL_INPUTS,
        np.arange(len(CASES.arm)),
        rng.random(len(CASES.arm)),
        rng.random(len(CASES.arm)),
    )
    part = InputPredictions(OTHER_PATIENT, rows, rng.random(len(rows)), rng.random(len(rows)))
    report = reliance_report([full, part], CASES, bootstrap=BOOTSTRAP)
    row, active = report.inputs[OTHER_PATIENT], CASES.active[rows]
    own = roc_auc_score(active, part.p_active)
    assert (row.cases, row.positives) == (len(rows), active.sum())
    assert row.scores.auc.value == pytest.approx(own)
    assert row.minus_all_inputs.auc.value == pytest.approx(
        own - roc_auc_score(active, full.p_active[rows])
    )
    assert row.scores.average_precision.value == pytest.approx(
        average_precision_score(active, part.p_active)
    )
    errors = (part.log_lesions - np.log(1 + CASES.count[rows])) ** 2
    assert row.scores.log_mse.value == pytest.approx(errors.mean())
    squares = (part.p_active - active) ** 2 - (full.p_active[rows] - active) ** 2
    weights = BOOTSTRAP.weights(len(rows))
    low, high = np.quantile(weights @ squares / len(rows), [0.025, 0.975])
    difference = row.minus_all_inputs.brier
    assert (difference.value, difference.low, difference.high) == pytest.approx(
        (squares.mean(), low, high)
    )


def test_every_patient_gets_the_images_of_another_one_of_the_same_arm() -> None:
    arm = np.array([0, 1, 0, 2, 0, 1, 3, 3, 3, 3])
    donors = draw_donors(arm, seed=0)
    assert donors[3] == -1  # the only patient of arm 2
    given = np.flatnonzero(donors >= 0)
    assert sorted(donors[given]) == list(given)
    assert (donors[given] != given).all()
    assert (arm[donors[given]] == arm[given]).all()
    assert (draw_donors(arm, seed=0) == donors).all()
    assert any((draw_donors(arm, seed=seed) != donors).any() for seed in range(1, 9))


def test_a_choice_that_hides_nothing_is_left_out() -> None:
    channels = parse_channels(("w000/flair",))
    burden, covariates = np.ones((4, 1, 3), np.float32), np.ones((4, 0), np.float32)
    inputs = PriorInputs(burden, covariates, np.arange(4), no_readings(4))
    made = predictions_by_inputs(ignore_images, inputs, channels, seed=0)
    assert [one.inputs for one in made] == [ALL_INPUTS, ARM_ALONE]


def test_without_a_second_patient_of_any_arm_no_verdict_is_given() -> None:
    lonely = [one for one in predicted(read_outcome) if one.inputs != OTHER_PATIENT]
    report = report_of(lonely)
    assert report.reliance.rests_on_images is None
    text = findings(report)[1].text
    assert text.startswith("Whether it rests on the patient's images cannot be told")


@pytest.mark.parametrize("flair_reader", [False, True])
def test_hidden_inputs_give_what_the_prior_says_of_images_without_them(
    tmp_path: Path, flair_reader: bool
) -> None:
    age = (Covariate("age", centre=40.0, scale=10.0),)
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=6)
    write_bundle(
        tmp_path / "bundle", lesion_loads=(1, 4), covariates=age, flair_reader=flair_reader
    )
    bundle = load_bundle(tmp_path / "bundle")
    by_inputs = {one.inputs: one for one in predict_from_parts(store, store.cases, bundle, seed=0)}
    assert list(by_inputs) == EVERY_ROW
    model = bundle.config.model
    channels = parse_channels(model.control.condition)
    kinds = np.array([kind for _, kind in channels])
    hidden = {
        ALL_INPUTS: np.zeros(len(channels), bool),
        WITHOUT_GADOLINIUM: kinds == "gad",
        WITHOUT_MASKS: kinds != "flair",
        BASELINE_FLAIR: np.array([channel != ("w000", "flair") for channel in channels]),
        ARM_ALONE: np.ones(len(channels), bool),
    }
    read = store_reader(store, model)
    predict = make_expectation_predictor(bundle.priors, model, device="cpu")
    for key, channel_is_hidden in hidden.items():
        for row, case in enumerate(store.cases):
            condition, covariates, _ = read(ModelInput(case.index))
            condition[channel_is_hidden] = 0
            if key == ARM_ALONE:
                covariates = np.full_like(covariates, np.nan)
            expected = predict(ConditioningArrays(condition, covariates))[case.arm_index]
            assert by_inputs[key].p_active[row] == pytest.approx(expected.p_active, abs=1e-6)
            assert by_inputs[key].log_lesions[row] == pytest.approx(expected.log_lesions, abs=1e-6)
    # Case 0 and case 3 are of one arm: they exchange images and keep their ages.
    condition = read(ModelInput(3)).condition
    assert (condition[NET2_W048] > 0).any()
    swapped = predict(ConditioningArrays(condition, read(ModelInput(0)).covariates))
    assert by_inputs[OTHER_PATIENT].p_active[0] == pytest.approx(swapped[0].p_active, abs=1e-6)
    assert len({round(float(one.p_active[1]), 7) for one in by_inputs.values()}) > 4


def test_a_model_that_only_samples_has_no_such_rows_and_the_report_says_why(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=3)
    write_bundle(tmp_path / "bundle")
    assert predict_from_parts(store, store.cases, load_bundle(tmp_path / "bundle"), seed=0) == ()
    report = report_of(())
    assert report.reliance is None
    assert NOT_MEASURED in render_markdown(report)
    assert QUESTION not in [finding.title for finding in findings(report)]


def test_the_section_shows_every_row_and_survives_json() -> None:
    report = report_of(predicted(read_outcome))
    text = render_markdown(report)
    for label in ("without gadolinium", "FLAIR of w000 alone", "none: the arm alone"):
        assert text.count(f"| {label} |") == 2  # scores, and differences from all inputs
    assert text.count("| all inputs |") == 1
    assert report_from_json(report_to_json(report), source="metrics.json") == report
    names = {field.name for field in fields(RelianceScores)}
    assert names == {"auc", "auc_within_arm", "average_precision", "brier", "log_mse"}
    without = replace(report, reliance=None)
    assert "| without gadolinium |" not in render_markdown(without)
