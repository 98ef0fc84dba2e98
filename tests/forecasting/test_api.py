"""The Python API: the numbers of the forecast job, without a Ray cluster."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import ray
import torch

import lesioncast
from lesioncast import api
from lesioncast.errors import BundleError, ForecastError
from lesioncast.forecasting.disclaimers import (
    BRAIN_MASK_MISSING,
    SIMULATED_SUBJECTS,
    TRAINED_ON_SIMULATED,
)
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from lesioncast.forecasting.output.calibrated import NOT_CALIBRATED
from lesioncast.forecasting.output.summary import read_summary
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    plan_forecast,
    run_provenance,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import build_sampler
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.covariates import Covariate
from lesioncast.warning_list import texts
from storage import CaseError, StoreError, StoreSettings, TrialLayout, open_store
from storage.convert.build_shard import build_shard
from storage.convert.convert import convert
from storage.convert.patient import PATIENT_IMAGES, convert_patient
from storage.convert.plan import plan_conversion
from storage.trial.description import TrialDescription
from tests.support.bids import ARMS, path_of, write_participants, write_trial
from tests.support.forecast import GEOMETRY, SPEC, write_bundle

SUBJECT = "sub-03"
SETTINGS = ForecastSettings(samples=4, batch_size=8)
# Others than the defaults, so that images prepared with the defaults give another forecast.
SETTINGS_OF_STORE = StoreSettings(
    SPEC.slab,
    SPEC.spacing,
    resample=False,
    percentiles=(5.0, 90.0),
    layout=TrialLayout(sessions=("baseline", "month 12", "month 24")),
)
FLAIR = ("w000/flair", "w048/flair")
IMAGES = [name for name in PATIENT_IMAGES if name != "w048/brain_mask"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trial without w096, its store, and a bundle."""
    folder = tmp_path_factory.mktemp("api")
    bids = folder / "bids"
    names = write_trial(bids, 3, geometry=GEOMETRY)
    write_participants(bids, dict(zip(names, ARMS, strict=True)) | {SUBJECT: "n/a"})
    for session in list(bids.rglob("ses-w096")):
        shutil.rmtree(session)
    settings = replace(SETTINGS_OF_STORE, layout=TrialLayout())
    plan = plan_conversion(bids, folder / "store.zarr", settings=settings, arms=ARMS, seed=0)
    convert(plan, build=lambda tasks: map(build_shard, tasks))
    write_bundle(
        folder / "bundle", settings=SETTINGS_OF_STORE, covariates=(Covariate("age", 30, 10),)
    )
    return folder


@pytest.fixture(scope="module")
def model(root: Path) -> api.ForecastModel:
    return lesioncast.load_bundle(root / "bundle")


@pytest.fixture(scope="module")
def forecast(root: Path, model: api.ForecastModel) -> api.Forecast:
    return model.forecast_case(root / "store.zarr", SUBJECT, settings=SETTINGS, seed=7)


@pytest.fixture(autouse=True)
def no_cluster() -> Iterator[None]:
    """Fail a test that starts or needs Ray."""
    before = ray.is_initialized()
    yield
    assert ray.is_initialized() == before


def test_the_package_offers_the_api_without_importing_it() -> None:
    script = "import sys, lesioncast; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert lesioncast.load_bundle is api.load_bundle
    with pytest.raises(AttributeError, match="no attribute 'load_bundel'"):
        _ = lesioncast.load_bundel


def test_a_case_has_the_numbers_and_maps_of_the_forecast_job(
    root: Path, model: api.ForecastModel, forecast: api.Forecast, tmp_path: Path
) -> None:
    store = open_store(root / "store.zarr")
    cases = [store.case(SUBJECT)]
    batches = plan_forecast(store, cases, settings=SETTINGS, seed=7).batches(3)
    run = ForecastRun(
        settings=SETTINGS,
        provenance=run_provenance(model.bundle, store, seed=7, sessions=()),
        out=tmp_path,
        background=stored_flair(store),
    )
    sampler = build_sampler(root / "bundle", store.path, device="cpu")
    (written,) = write_forecasts(store, cases, map(sampler, batches), run)
    assert forecast.summary == written == read_summary(summary_path(tmp_path, SUBJECT))
    for arm, found in forecast.arms.items():
        image = nib.load(forecast_path(tmp_path, SUBJECT, arm))
        assert np.array_equal(found.probability.get_fdata(), image.get_fdata())
        assert np.allclose(found.probability.affine, image.affine)
        summary = written.arms[arm]
        assert found.p_active == summary.p_active.value
        assert found.expected_count == summary.count.mean == found.lesion_counts.mean()
        assert len(found.lesion_counts) == SETTINGS.samples


def test_images_give_the_forecast_of_the_same_subject_in_the_store(
    root: Path, model: api.ForecastModel, forecast: api.Forecast
) -> None:
    images = {name: path_of(root / "bids", SUBJECT, *name.split("/")) for name in IMAGES}
    threads = torch.get_num_threads()
    found = model.forecast(
        images,
        patient=lesioncast.Patient(covariates={"age": 32}, subject=SUBJECT),
        settings=SETTINGS,
        seed=7,
    )
    assert torch.get_num_threads() == threads
    assert found.summary == forecast.summary
    for arm in ARMS:
        assert np.array_equal(
            found.arms[arm].probability.get_fdata(), forecast.arms[arm].probability.get_fdata()
        )


def test_loaded_images_give_the_bits_of_their_files(
    root: Path, model: api.ForecastModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a file whose values are scaled integers, and of a mask of true and false."""
    converted: list[dict[str, tuple[object, bytes, bytes]]] = []

    def convert_and_note(bids: Path, store: Path, **settings: object) -> object:
        files = {path.name: nib.load(path) for path in bids.rglob("*.nii.gz")}
        converted.append(
            {
                name: (image.shape, np.asarray(image.dataobj).tobytes(), image.affine.tobytes())
                for name, image in files.items()
            }
        )
        return convert_patient(bids, store, **settings)

    monkeypatch.setattr(api, "convert_patient", convert_and_note)
    paths = {name: path_of(root / "bids", SUBJECT, *name.split("/")) for name in IMAGES}
    scaled = nib.Nifti1Image.from_filename(paths["w048/flair"])
    values = np.asarray(scaled.dataobj)
    header = scaled.header.copy()
    header.set_data_dtype(np.int16)
    stored = np.round(values / values.max() * 3000).astype(np.int16)
    image = nib.Nifti1Image(stored, scaled.affine, header)
    image.header.set_slope_inter(0.37, -11.0)
    paths["w048/flair"] = tmp_path / "scaled.nii.gz"
    nib.save(image, paths["w048/flair"])
    images = {name: nib.load(path) for name, path in paths.items()}
    assert images["w048/flair"].dataobj.slope == np.float32(0.37)
    gad = images["w048/gad"]
    images["w048/gad"] = nib.Nifti1Image(np.asarray(gad.dataobj) > 0, gad.affine, gad.header)
    one, other = (
        model.forecast(given, settings=SETTINGS, samples=2, seed=3) for given in (paths, images)
    )
    for arm in ARMS:
        assert np.array_equal(one.arms[arm].lesion_counts, other.arms[arm].lesion_counts)
        assert np.array_equal(
            one.arms[arm].probability.get_fdata(), other.arms[arm].probability.get_fdata()
        )
    assert one.summary.arms == other.summary.arms
    from_files, from_images = converted
    masks = {name for name in from_files if "gad" in name.lower()}  # another type, equal voxels
    assert len(from_files) == len(IMAGES)
    assert from_files.keys() == from_images.keys()
    assert [n for n in from_files if from_files[n] != from_images[n] and n not in masks] == []


def test_an_image_of_another_format_is_rejected(model: api.ForecastModel) -> None:
    image = nib.MGHImage(np.zeros((3, 3, 3), np.float32), np.eye(4))
    with pytest.raises(
        ForecastError, match=r"w000/flair: expected a path or a NIfTI image, got MGH"
    ):
        model.forecast({"w000/flair": image})


def test_some_arms_have_the_samples_of_a_forecast_of_all_arms(
    root: Path, model: api.ForecastModel, forecast: api.Forecast
) -> None:
    arms = (ARMS[2], ARMS[0])
    settings = replace(SETTINGS, reference_arm=ARMS[0])
    some = model.forecast_case(root / "store.zarr", SUBJECT, arms=arms, settings=settings, seed=7)
    assert tuple(some.arms) == arms
    for arm in arms:
        assert some.summary.arms[arm].count == forecast.summary.arms[arm].count
        assert np.array_equal(
            some.arms[arm].probability.get_fdata(), forecast.arms[arm].probability.get_fdata()
        )
    for unknown in (("aspirin",), (ARMS[0], "aspirin")):
        with pytest.raises(ForecastError, match="arms: expected some of .*, got aspirin"):
            model.forecast_case(root / "store.zarr", SUBJECT, arms=unknown)
    with pytest.raises(ForecastError, match="reference_arm: expected one of .*, got placebo"):
        model.forecast_case(root / "store.zarr", SUBJECT, arms=[a for a in ARMS if a != "placebo"])


def test_images_of_another_voxel_size_are_resampled_on_demand(
    root: Path, model: api.ForecastModel, tmp_path: Path
) -> None:
    images = {}
    for name in FLAIR:
        image = nib.load(path_of(root / "bids", SUBJECT, *name.split("/")))
        affine = image.affine @ np.diag([1.5, 1.5, 1.5, 1.0])
        images[name] = tmp_path / f"{name.replace('/', '_')}.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), images[name])
    settings = replace(SETTINGS, samples=2)
    with pytest.raises(CaseError, match="resample it or set store.resample"):
        model.forecast(images, settings=settings)
    assert model.forecast(images, patient=lesioncast.Patient(resample=True), settings=settings).arms


def test_a_forecast_says_if_its_bundle_knows_simulated_or_masked_images_alone(
    root: Path, tmp_path: Path
) -> None:
    write_bundle(tmp_path / "b", settings=SETTINGS_OF_STORE, simulated=True, brain_mask_share=1.0)
    trained_on_simulated = lesioncast.load_bundle(tmp_path / "b")
    settings = replace(SETTINGS, samples=2)
    found = trained_on_simulated.forecast_case(root / "store.zarr", SUBJECT, settings=settings)
    assert found.summary.warnings[0].text == TRAINED_ON_SIMULATED
    assert BRAIN_MASK_MISSING in texts(found.summary.warnings)
    store = open_store(root / "store.zarr")
    simulated = replace(store, table=replace(store.table, trial=TrialDescription("X", True)))
    found = trained_on_simulated.forecast_case(simulated, SUBJECT, settings=settings)
    assert TRAINED_ON_SIMULATED not in texts(found.summary.warnings)
    assert SIMULATED_SUBJECTS in found.summary.notes


def test_images_need_no_configuration(root: Path, model: api.ForecastModel) -> None:
    images = {name: str(path_of(root / "bids", SUBJECT, *name.split("/"))) for name in FLAIR}
    patient = lesioncast.Patient(covariates={"days_to_current": 100})
    found = model.forecast(images, patient=patient, settings=SETTINGS, samples=2)
    (days,) = (one for one in found.summary.warnings if one.code == "days_outside_training")
    assert "month 12 is 100 days after baseline for this patient" in days.text
    assert found.summary.typicality.days_outside_training == (days.text,)
    assert found.summary.notes[-1] == NOT_CALIBRATED
    assert found.summary.subject == "sub-patient"
    assert found.summary.covariates.missing == ("age",)
    assert tuple(found.arms) == model.arms == ARMS


@pytest.mark.parametrize(
    ("images", "covariates", "message"),
    [
        ({"w024/flair": "x.nii"}, {}, "images: expected names among w000/flair, .* got w024/flair"),
        ({}, {"weight": 70}, "covariates: expected some of age, got weight"),
        ({}, {"days_to_current": -3}, "covariates.days_to_current: expected days from 0 to 36525"),
        ({}, {"age": "old"}, "covariates.age: expected a finite number, got old"),
    ],
)
def test_unknown_images_and_covariates_are_rejected(
    model: api.ForecastModel, images: dict, covariates: dict, message: str
) -> None:
    with pytest.raises(ForecastError, match=message):
        model.forecast(images, patient=lesioncast.Patient(covariates=covariates))


def test_errors_name_what_is_missing(root: Path, model: api.ForecastModel) -> None:
    flair = path_of(root / "bids", SUBJECT, "w048", "flair")
    with pytest.raises(CaseError, match="w000"):
        model.forecast({"w048/flair": flair})
    with pytest.raises(StoreError, match="sub-77"):
        model.forecast_case(root / "store.zarr", "sub-77")
    with pytest.raises(ForecastError, match="reference_arm: expected one of .*, got aspirin"):
        model.forecast_case(
            root / "store.zarr", SUBJECT, settings=ForecastSettings(reference_arm="aspirin")
        )
    with pytest.raises(BundleError, match="expected a bundle"):
        lesioncast.load_bundle(root / "nothing")
