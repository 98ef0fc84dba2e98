"""Forecasts of whole subjects: files on the subjects' own skewed grid, figures, summary page."""

import json
import logging
import operator
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.text import Text

from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import UNetConfig
from lesioncast.errors import ForecastError
from lesioncast.evaluation.reporting.summary_page import (
    forecast_section,
    relative_path,
    render_page,
)
from lesioncast.evaluation.run import reference_arm_index, select_evaluation_cases
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.output.bids import (
    figure_path,
    forecast_path,
    new_map_path,
    read_maps,
    summary_path,
    write_forecast_root,
)
from lesioncast.forecasting.output.dicom_seg import forecast_segmentation
from lesioncast.forecasting.output.display import (
    choose_slices,
    make_view,
    to_display,
)
from lesioncast.forecasting.output.figure import forecast_figure
from lesioncast.forecasting.output.summary import ForecastSummary, RunProvenance, read_summary
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    bids_flair,
    plan_forecast,
    stored_flair,
    subjects_to_forecast,
    write_forecasts,
)
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import BatchSampler
from lesioncast.forecasting.settings import ForecastSettings
from storage import SESSIONS, Store, StoreSettings, VisitSchedule, open_store
from storage.convert.build_shard import build_shard
from storage.convert.convert import convert
from storage.convert.plan import plan_conversion
from storage.export.bids_derivative import sidecar_path
from storage.export.bids_names import DerivedNames
from tests.support.bids import ARMS, path_of, write_trial
from tests.support.bids_validator import dead_links, validator_reports
from tests.support.forecast import GEOMETRY, SLAB, fake_draw, write_store

VISITS = VisitSchedule(("m00", "m12", "m24"), (0, 365, 730))
SETTINGS = ForecastSettings(samples=12, batch_size=16, slices=2)


def build_fake(store: Path) -> BatchSampler:
    opened = open_store(store)
    config = ModelConfig(opened.spec.arms, UNetConfig(arms=len(opened.spec.arms)))
    return BatchSampler(fake_draw, store_reader(opened, config), spacing=opened.spec.spacing)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("trial")
    return write_store(folder / "store.zarr", folder / "bids"), folder / "bids"


@pytest.fixture(scope="module")
def forecasts(
    trial: tuple[Store, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[ForecastSummary]]:
    """Forecast the first two cases: sub-01 was not active at w048, sub-02 was."""
    (store, bids), out = trial, tmp_path_factory.mktemp("forecasts")
    cases = subjects_to_forecast(store, (), number=2)
    batches = plan_forecast(store, cases, settings=SETTINGS, seed=5).batches(SETTINGS.batch_size)
    write_forecast_root(out, source=bids)
    run = ForecastRun(
        settings=SETTINGS,
        provenance=RunProvenance("d" * 64, 5, ("Trained on made-up cases.",), visits=VISITS),
        out=out,
        background=bids_flair(bids),
    )
    return out, list(write_forecasts(store, cases, map(build_fake(store.path), batches), run))


def test_every_arm_has_a_map_with_a_bids_name(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    out, _ = forecasts
    found = {path.name for path in (out / "sub-02/ses-w048/anat").iterdir()}
    stem = "sub-02_ses-w048_space-orig_label-L_desc-forecastW096"
    assert found == {
        f"{stem}{arm}_probseg.{end}"
        for arm in ("Placebo", "Avonex", "Ocrelizumab")
        for end in ("nii.gz", "json")
    }


def test_a_forecast_names_sessions_by_the_labels_of_its_bundle(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    out, records = forecasts
    target = "new and enlarging T2 lesions at m24 since m12"
    assert records[0].target == target
    path = forecast_path(out, "sub-02", "avonex")
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["ForecastSession"] == "m24"
    assert target in sidecar["Description"]
    (map_of_arm,) = (m for m in read_maps(out, "sub-02") if m.sidecar["Arm"] == "avonex")
    assert forecast_segmentation([map_of_arm]).segments[0].label == "NET2 m24 forecast, avonex"
    assert "observed at m24: " in forecast_section(records[0], heading="A forecast")


def test_the_figure_names_sessions_by_the_labels_of_its_bundle(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    image = nib.load(forecast_path(forecasts[0], "sub-02", "avonex"))
    view = make_view(image, {"avonex": image}, None)
    summary = replace(forecasts[1][1], arms={"avonex": forecasts[1][1].arms["avonex"]})
    figure = forecast_figure(view, summary, slices=1)
    texts = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "forecast for m24" in texts
    assert "FLAIR, m12" in texts
    assert re.findall(r"\bw0\d\d\b|\bweeks? \d+", texts) == []


def test_an_arm_name_becomes_a_bids_label() -> None:
    names = DerivedNames("sub-01", {}, dict(zip(SESSIONS, SESSIONS, strict=True)))
    path = new_map_path(Path("out"), names, "dimethyl fumarate_240")
    assert "_desc-forecastW096DimethylFumarate240_" in path.name


def test_the_map_lies_on_the_skewed_grid_of_the_flair(
    trial: tuple[Store, Path], forecasts: tuple[Path, list[ForecastSummary]]
) -> None:
    (store, bids), (out, records) = trial, forecasts
    flair = nib.load(path_of(bids, "sub-02", "w048", "flair"))
    image = nib.load(forecast_path(out, "sub-02", "placebo"))
    assert image.get_data_dtype() == np.float32
    assert image.shape == flair.shape
    assert np.allclose(image.affine, flair.affine, atol=1e-5)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert [int(image.header[code]) for code in ("sform_code", "qform_code")] == [2, 1]
    expected = records[1].arms["placebo"].p_active.value
    found = np.asarray(image.dataobj)
    assert found.max() == pytest.approx(expected)
    centre = nib.affines.apply_affine(image.affine, np.argwhere(found > 0).mean(axis=0))
    slab = np.array(store.case("sub-02").grid.slab_affine)
    assert centre == pytest.approx(nib.affines.apply_affine(slab, [3.5, 10.5, 2]), abs=1e-3)


def test_the_sidecar_says_that_the_map_is_predicted_and_names_its_sources(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    path = forecast_path(forecasts[0], "sub-02", "avonex")
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["PredictedNotObserved"] is True
    assert sidecar["Arm"] == sidecar["ReceivedArm"] == "avonex"
    assert sidecar["BundleDigest"] == "d" * 64
    assert len(sidecar["Seeds"]) == sidecar["Samples"] == 12
    assert "confounded" in sidecar["PositivityWarning"]
    assert sidecar["SpatialReference"].endswith("sub-02_ses-w048_FLAIR.nii.gz")


def test_maps_follow_the_names_of_their_sources_and_replace_those_of_an_earlier_run(
    tmp_path: Path,
) -> None:
    trial = tmp_path / "bids"
    write_trial(trial, 2, geometry=GEOMETRY)
    for session, name in (("w000", "acq-2D_run-2"), ("w048", "acq-3D_run-1")):
        flair = path_of(trial, "sub-02", session, "flair")
        flair.rename(flair.with_name(flair.name.replace("_FLAIR", f"_{name}_FLAIR")))
    settings = StoreSettings(SLAB, GEOMETRY.spacing, resample=False)
    plan = plan_conversion(trial, tmp_path / "s.zarr", settings=settings, arms=ARMS, seed=0)
    store = convert(plan, build=lambda tasks: map(build_shard, tasks))
    case, out = store.case("sub-02"), tmp_path / "out"
    batches = plan_forecast(store, [case], settings=SETTINGS, seed=5).batches(16)
    provenance = RunProvenance("d" * 64, 5, condition=("w000/flair", "w048/flair", "w048/t2"))
    run = ForecastRun(
        settings=SETTINGS, provenance=provenance, out=out, background=bids_flair(trial)
    )
    old = out / "sub-02/ses-w048/anat/sub-02_ses-w048_desc-old_probseg.nii.gz"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    write_forecast_root(out, source=trial)
    list(write_forecasts(store, [case], map(build_fake(store.path), batches), run))
    path = forecast_path(out, "sub-02", "avonex")
    assert path.name == (
        "sub-02_ses-w048_acq-3D_run-1_space-orig_label-L_desc-forecastW096Avonex_probseg.nii.gz"
    )
    sources = json.loads(sidecar_path(path).read_text())["Sources"]
    assert [source.rpartition("/")[2] for source in sources] == [
        "sub-02_ses-w000_acq-2D_run-2_FLAIR.nii.gz",
        "sub-02_ses-w048_acq-3D_run-1_FLAIR.nii.gz",
        "sub-02_ses-w048_space-orig_label-L_desc-T2_mask.nii.gz",
    ]
    assert dead_links(out) == set()
    assert not old.exists()
    assert len(read_maps(out, "sub-02")) == 3
    assert validator_reports(out) == {"own": []}
    with pytest.raises(ForecastError, match="a probability map of sub-02 under aspirin, got none"):
        forecast_path(out, "sub-02", "aspirin")


def test_arms_share_their_seeds_and_subjects_do_not(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    first, second = forecasts[1]
    assert not set(first.seeds) & set(second.seeds)
    chance = [arm.p_active.value for arm in second.arms.values()]
    assert chance == sorted(chance, reverse=True)
    assert first.arms["placebo"].p_active.value < 0.4
    assert (first.observed_lesions, second.observed_lesions) == (0, 1)


def test_summary_and_figure_are_written_beside_the_maps(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    out, records = forecasts
    assert read_summary(summary_path(out, "sub-01")) == records[0]
    assert figure_path(out, "sub-01").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert not list(out.rglob("*.partial"))


def test_a_summary_of_another_schema_or_with_other_keys_is_rejected(
    forecasts: tuple[Path, list[ForecastSummary]], tmp_path: Path
) -> None:
    path, content = tmp_path / "sub-01_forecast.json", asdict(forecasts[1][0])
    for changed, problem in (
        (content | {"schema": 4}, "schema 7, got schema 4; forecast the subject again"),
        (content | {"notices": []}, "got notices: Unexpected keyword"),
        ({"schema": 3}, "got subject: Field required"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ForecastError, match=problem):
            read_summary(path)


def test_the_official_validator_accepts_the_forecasts(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    assert validator_reports(forecasts[0]) == {"own": []}


def test_the_summary_page_shows_the_forecast_and_each_disclaimer_once(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    out, records = forecasts
    link = relative_path(figure_path(out, "sub-02"), page_folder=out.parent)
    section = forecast_section(records[1], heading="A forecast", figure=link)
    text = render_page(
        "Demo", [section], disclaimers=[*records[0].disclaimers, *records[1].disclaimers]
    )
    assert f"({out.name}/sub-02/sub-02_forecast.png)" in text
    assert text.count("Predicted, not observed.") == 1
    assert "| **avonex** (received) |" in text
    assert "lesions expected" not in text


def test_the_summary_page_shows_expected_lesions(
    forecasts: tuple[Path, list[ForecastSummary]],
) -> None:
    summary = forecasts[1][1]
    arms = {
        name: replace(arm, count=replace(arm.count, expected=1.25 + place))
        for place, (name, arm) in enumerate(summary.arms.items())
    }
    section = forecast_section(replace(summary, arms=arms), heading="A forecast")
    assert "| lesions expected | lesions drawn, mean (sd) |" in section
    assert all(f" | {1.25 + place:.2f} | " in section for place in range(3))


def test_the_stored_flair_is_the_background_if_the_bids_folder_is_missing(
    trial: tuple[Store, Path],
) -> None:
    store, bids = trial
    case = store.case("sub-02")
    stored, own = stored_flair(store)(case), bids_flair(bids)(case)
    assert stored.shape == own.shape
    inside = np.asarray(stored.dataobj) > 0
    assert np.corrcoef(stored.get_fdata()[inside], own.get_fdata()[inside])[0, 1] > 0.999
    with pytest.raises(ForecastError, match=r"sub-02.*--bids"):
        bids_flair(bids / "nowhere")(case)


def test_images_on_another_grid_are_rejected(trial: tuple[Store, Path]) -> None:
    store, bids = trial
    flair = bids_flair(bids)(store.case("sub-02"))
    moved = nib.Nifti1Image(np.zeros(flair.shape, np.float32), flair.affine + np.eye(4))
    with pytest.raises(ValueError, match="placebo"):
        make_view(flair, {"placebo": moved}, None)


def ramp_view(*, mass: dict[int, float]) -> object:
    flair = np.zeros((20, 16, 12), np.float32)
    chance = np.zeros_like(flair)
    for index, value in mass.items():
        chance[index, 8, 6] = value
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    images = [nib.Nifti1Image(each.transpose(2, 1, 0), affine) for each in (flair, chance)]
    return make_view(images[0], {"placebo": images[1]}, None)


def test_displayed_slices_have_the_most_probability_and_are_apart() -> None:
    assert choose_slices(ramp_view(mass={4: 0.9, 5: 0.8, 12: 0.3}), 2) == [12, 4]


def test_the_central_slices_are_displayed_if_the_probability_is_zero() -> None:
    assert set(choose_slices(ramp_view(mass={}), 1)) <= {9, 10}


def test_the_patients_right_is_on_the_left_and_anterior_on_top() -> None:
    """Check one voxel: canonical w runs to the patient's right, h to anterior."""
    plane = np.zeros((16, 12), np.float32)
    plane[15, 11] = 1  # anterior right
    shown = to_display(plane, (3.0, 2.0, 2.0), order=1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert row < shown.shape[0] / 4
    assert column < shown.shape[1] / 4


def test_every_slice_of_a_figure_names_the_side_of_the_patient_at_each_edge(
    trial: tuple[Store, Path], forecasts: tuple[Path, list[ForecastSummary]]
) -> None:
    (store, bids), (out, records) = trial, forecasts
    flair = bids_flair(bids)(store.case("sub-02"))
    maps = {arm: nib.load(forecast_path(out, "sub-02", arm)) for arm in records[1].arms}
    figure = forecast_figure(make_view(flair, maps, None), records[1], slices=2)
    figure.draw_without_rendering()
    slices = [axes for axes in figure.axes if axes.images and len(axes.images[0].get_array()) > 20]
    assert len(slices) == 2 * (1 + len(maps))
    for axes in slices:
        at = {text.get_text(): text.get_position() for text in axes.texts}
        assert at["R"][0] < 0.1 < 0.9 < at["L"][0]
        assert at["P"][1] < 0.1 < 0.9 < at["A"][1]


def test_unknown_subjects_and_reference_arms_are_rejected_by_name(
    trial: tuple[Store, Path], tmp_path: Path
) -> None:
    store, _ = trial
    with pytest.raises(Exception, match="sub-99"):
        subjects_to_forecast(store, ["sub-99"], number=1)
    run = ForecastRun(
        settings=ForecastSettings(samples=2, reference_arm="aspirin"),
        provenance=RunProvenance("d", 0),
        out=tmp_path,
        background=stored_flair(store),
    )
    stream = write_forecasts(store, [], [], run)
    with pytest.raises(ForecastError, match="aspirin"):
        next(stream)


def test_held_out_cases_are_requested_once_and_counterfactual_ones_under_every_arm(
    trial: tuple[Store, Path], tmp_path: Path
) -> None:
    with pytest.raises(ForecastError, match="training cases"):
        select_evaluation_cases(trial[0], EvaluationSettings())
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=6, train=3)
    split = select_evaluation_cases(store, EvaluationSettings(counterfactual_subjects=2))
    assert (len(split.train), len(split.test), split.counterfactual) == (3, 6, (0, 3))
    factual = split.factual_requests(validation=True)
    counterfactual = split.counterfactual_requests(arms=3, sessions=None)
    assert len({*factual, *counterfactual}) == 4 + 2 * 3
    on_baseline = split.counterfactual_requests(arms=3, sessions=("w000",))
    assert len({*factual, *on_baseline}) == 6 + 2 * 3
    assert split.validation == ()
    with pytest.raises(ForecastError, match=r"reference_arm: expected one of .*, got aspirin"):
        reference_arm_index("aspirin", store)


def test_progress_lines_show_the_number_done_and_the_time_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = iter(range(0, 100, 4))
    with caplog.at_level(logging.INFO):
        assert list(with_progress("abc", total=3, label="done", clock=lambda: next(times))) == [
            *"abc"
        ]
    assert caplog.messages == ["done 2/3, 0.2/s, 4 s left", "done 3/3, 0.2/s, 0 s left"]


@pytest.mark.ray
def test_actors_answer_in_the_order_of_the_items(ray_cluster: None) -> None:
    build = partial(partial, operator.mul, 3)  # each actor holds `partial(mul, 3)`
    assert list(ordered_actor_map(build, range(20), workers=2)) == list(range(0, 60, 3))
