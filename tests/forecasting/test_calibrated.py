"""Forecasts state the intervals and the P(active) that their bundle's calibration gives them."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from scipy.special import expit, logit

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.calibration import (
    BundleCalibration,
    CalibrationCohort,
    PatternCalibration,
)
from lesioncast.calibration.conformal import ConformalQuantile
from lesioncast.calibration.fit import Calibration
from lesioncast.calibration.recalibration import PlattScaling
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.output.bids import page_path, read_maps, summary_path
from lesioncast.forecasting.output.calibrated import (
    NOT_CALIBRATED,
    calibrated_arm,
    calibration_notes,
    summarise_calibration,
)
from lesioncast.forecasting.output.display import View
from lesioncast.forecasting.output.figure import count_range, forecast_figure
from lesioncast.forecasting.output.summary import ForecastSummary, read_summary
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    plan_forecast,
    run_provenance,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import forecast_sampler
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.forecasting.view.kept_samples import KeptSamples
from lesioncast.forecasting.view.numbers import finished_numbers
from lesioncast.jobs.calibrate import main as calibrate_main
from tests.support.bids import ARMS
from tests.support.forecast import write_bundle, write_store

IMAGES = "w000 and w048: all kinds of image"
QUANTILES = (ConformalQuantile(0.8, 99, 80, 0.5), ConformalQuantile(0.9, 99, 90, 1.0))
LEARNED = Calibration(99, 40, QUANTILES, PlattScaling(slope=0.5, intercept=-1.0))
COHORT = CalibrationCohort("99 cases of a trial", {"placebo": 60, "avonex": 39}, True, "s", ())
CALIBRATION = BundleCalibration(COHORT, (PatternCalibration(IMAGES, LEARNED),))
STATED = ExpectedOutcomes(0.7, 2.0, np.log(3), log_sd=0.3, pattern=IMAGES)


def test_intervals_and_p_active_by_hand() -> None:
    """The scale is 0.3 + log 2 = 0.993: counts from 3 e^-.497 - 1 = 0.83 to 3 e^.497 - 1 = 3.9."""
    arm = calibrated_arm(CALIBRATION, STATED, "placebo")
    assert [(one.level, one.low, one.high) for one in arm.count_intervals] == [
        (0.8, 1, 3),
        (0.9, 1, 7),
    ]
    assert arm.reported_interval == arm.count_intervals[1]
    assert arm.p_active == pytest.approx(expit(-1 + 0.5 * logit(0.7)))
    assert arm.cohort_cases == 60
    summary = summarise_calibration(CALIBRATION, STATED)
    assert (summary.cohort, summary.cases, summary.images) == ("99 cases of a trial", 99, IMAGES)


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        (None, STATED),  # a bundle without calibration
        (CALIBRATION, None),  # after the opening, or from samples alone
        (CALIBRATION, STATED._replace(pattern="w000: FLAIR alone")),  # images no case had
    ],
)
def test_without_a_calibration_a_note_says_so(
    calibration: BundleCalibration | None, expected: ExpectedOutcomes | None
) -> None:
    assert calibrated_arm(calibration, expected, "placebo") is None
    assert summarise_calibration(calibration, expected) is None
    assert calibration_notes(calibration, expected, ["placebo"]) == (NOT_CALIBRATED,)


def test_a_note_names_the_arms_that_no_case_of_the_cohort_received() -> None:
    assert calibration_notes(CALIBRATION, STATED, ["placebo", "avonex"]) == ()
    (note,) = calibration_notes(CALIBRATION, STATED, ["placebo", "fumarate", "ocrelizumab"])
    assert note.startswith("No case of the calibration cohort received fumarate, ocrelizumab:")
    assert calibrated_arm(CALIBRATION, STATED, "fumarate").cohort_cases == 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ForecastSummary]:
    """Forecast one subject with a calibrated bundle; return the folder and the summary."""
    folder = tmp_path_factory.mktemp("calibrated")
    store = write_store(folder / "store.zarr", folder / "bids", test=10)
    write_bundle(folder / "parent", lesion_loads=(1, 4))
    paths = [str(folder / "parent"), str(store.path), "--output", str(folder / "bundle")]
    assert calibrate_main([*paths, "--split", "test"]) == 0
    bundle = load_bundle(folder / "bundle")
    settings = ForecastSettings(samples=2, batch_size=8, slices=1, reference_arm="placebo")
    provenance = run_provenance(bundle, store, seed=0, sessions=())
    run = ForecastRun(
        settings=settings, provenance=provenance, out=folder, background=stored_flair(store)
    )
    cases = [store.cases[1]]
    plan = plan_forecast(store, cases, settings=settings, seed=0)
    drawn = map(forecast_sampler(bundle, store, device="cpu"), plan.batches(8))
    (summary,) = write_forecasts(store, cases, drawn, run)
    return folder, summary


def test_every_file_of_a_forecast_has_the_calibrated_numbers(
    written: tuple[Path, ForecastSummary],
) -> None:
    folder, summary = written
    assert read_summary(summary_path(folder, summary.subject)) == summary
    assert summary.calibration.cohort == "10 test cases of A made-up trial"
    assert NOT_CALIBRATED not in summary.notes
    for record in (one.sidecar for one in read_maps(folder, summary.subject)):
        arm = summary.arms[record["Arm"]].calibrated
        interval = arm.reported_interval
        assert record["Calibrated"]["p_active"] == arm.p_active
        words = f"90% interval: {interval.low} to {interval.high}, learned on 10 test cases of A"
        assert words in record["Description"]
    numbers = finished_numbers(summary, KeptSamples({}, {}), errors={})
    assert [one.calibrated for one in numbers] == [summary.arms[arm].calibrated for arm in ARMS]
    assert "Lesions, calibrated intervals" in page_path(folder, summary.subject).read_text()


def test_the_figure_shows_the_interval_and_the_cohort(
    written: tuple[Path, ForecastSummary],
) -> None:
    _, summary = written
    volume = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
    view = View(
        flair=volume,
        probability=dict.fromkeys(summary.arms, volume),
        observed=None,
        spacing=(3.0, 1.5, 1.5),
        heights=np.zeros(3),
    )
    figure = forecast_figure(view, summary, slices=1)
    texts = [artist.get_text() for artist in figure.findobj(Text)]
    assert "recalibrated" in texts
    for arm in summary.arms.values():
        interval = arm.calibrated.reported_interval
        assert count_range(arm) == f"{interval.low}–{interval.high}, 90% interval"
        assert count_range(arm) in texts
    footer = " ".join(texts)
    assert "learned on 10 test cases of A made-up trial; 10 had these images" in footer
    assert json.dumps(summary.calibration.images)[1:-1] in footer
