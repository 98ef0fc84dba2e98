"""The spatial prior of a run: fitted once, and read by both stages, the bundle and forecasts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.members import SPATIAL_FILE
from lesioncast.bundle.spatial_base import (
    SpatialBase,
    read_record,
    read_spatial_base,
    write_spatial_base,
)
from lesioncast.diffusion.settings.networks import CONDITION
from lesioncast.diffusion.spatial.base_map import LEAST_DENSITY
from lesioncast.errors import BundleError, ChangedSettingsError, TrainingError
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.marginal_map import make_map_predictor
from lesioncast.forecasting.runtime import bundle_sampler, store_reader
from lesioncast.forecasting.sampling import EnsembleRequest, ModelInput, Sample
from lesioncast.priors.spatial.inputs import SpatialCase, SpatialInputs
from lesioncast.training.experiment import Experiment, Stage, finetune_stage, pretrain_stage
from lesioncast.training.export import export_bundle
from lesioncast.training.settings import TrainSettings
from lesioncast.training.spatial.base_maps import BaseMaps, compute_base_maps, discard_base
from lesioncast.training.spatial.fit import (
    FILE,
    TOUCHING,
    ratios_of_cases,
    ratios_of_run,
    with_base_of_run,
    with_fitted_base,
)
from lesioncast.training.trainer import train
from storage import Store
from tests.support.forecast import SLAB, write_store
from tests.training.base_map_runs import SAMPLER, base_map_experiment

SETTINGS = TrainSettings(
    steps=3, batch_size=6, warmup=1, workers=0, condition_dropout=0.2, session_dropout=0.3
)
LATER = np.array([name.startswith("w048") for name in CONDITION])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("trial")
    return write_store(folder / "store.zarr", folder / "bids", test=4, train=40)


@pytest.fixture(scope="module")
def fitted(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return with_fitted_base(base_map_experiment(store, tmp_path_factory.mktemp("fitted")), store)


def maps_of(fitted: Experiment) -> BaseMaps:
    maps = BaseMaps.of(fitted)
    assert maps is not None
    return maps


def test_the_prior_is_fitted_once_and_not_for_other_settings(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected the spatial prior of stage 1, got none"):
        with_base_of_run(base_map_experiment(store, tmp_path))
    first = with_fitted_base(base_map_experiment(store, tmp_path), store)
    written = (tmp_path / FILE).stat().st_mtime_ns
    again = with_fitted_base(base_map_experiment(store, tmp_path), store)
    assert (tmp_path / FILE).stat().st_mtime_ns == written
    assert first.base is not None
    assert again.base is not None
    assert first.base.digest == again.base.digest
    assert first.base.active.sum() == 20
    with pytest.raises(ChangedSettingsError, match="of the same settings, but seed changed"):
        with_fitted_base(base_map_experiment(store, tmp_path, seed=1), store)
    discard_base(first)
    assert not (tmp_path / FILE).exists()


def test_the_lesion_voxels_of_the_classes_are_those_of_training_cases(fitted: Experiment) -> None:
    """Every active case of the store has one lesion of four voxels."""
    assert fitted.base is not None
    voxels = read_spatial_base(fitted.base.path).base_map.voxels
    assert voxels.mean(1).tolist() == [1, 4, 9]  # a class without cases: least


def test_maps_of_training_cases_leave_out_their_own_lesions(
    store: Store, fitted: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = []
    without = SpatialBase.without

    def recorded(self: SpatialBase, outcome: np.ndarray) -> SpatialBase:
        left_out.append(outcome)
        return without(self, outcome)

    monkeypatch.setattr(SpatialBase, "without", recorded)
    discard_maps = maps_of(fitted)
    for part in discard_maps.parts:
        discard_maps.path(part).unlink(missing_ok=True)
    compute_base_maps(fitted, store, workers=0)
    assert fitted.base is not None
    cases = [fitted.cases.cases[row] for row in np.flatnonzero(fitted.base.active)]
    expected = [store.read(index).masks[2, 2].astype(bool) for index in cases]
    assert np.array_equal(left_out, expected)
    base = read_spatial_base(fitted.base.path)
    rest = base.without(expected[0]).prior.atlas.total
    assert np.array_equal(rest, base.prior.atlas.total - expected[0])
    row = np.flatnonzero(fitted.base.active)[:1]
    nothing = maps_of(fitted).batch(row, np.ones((1, len(CONDITION)), bool))[0].numpy()
    assert np.allclose(nothing, base.prior.atlas_log_density(), atol=0.02)  # half precision
    assert np.exp(nothing.astype(float)).sum() == pytest.approx(1, rel=0.02)


def test_a_case_has_the_map_of_the_images_that_it_shows(store: Store, fitted: Experiment) -> None:
    compute_base_maps(fitted, store, workers=0)
    maps = maps_of(fitted)
    assert fitted.base is not None
    row = int(np.flatnonzero(fitted.base.active)[0])
    one = np.zeros(len(CONDITION), bool)
    single = [one.copy() for _ in CONDITION]
    for channel, hidden in enumerate(single):
        hidden[channel] = True
    complete, start, atlas = (
        maps.batch(np.array([row]), hidden[None])[0] for hidden in (one, LATER, ~one)
    )
    assert not torch.equal(complete, start)
    assert not torch.equal(start, atlas)
    for hidden in single:
        shown = maps.batch(np.array([row]), hidden[None])[0]
        assert torch.equal(shown, start if LATER[hidden].all() else atlas)
    inactive = int(np.flatnonzero(~fitted.base.active)[0])
    even = maps.batch(np.array([inactive, row]), np.stack([one, one]))
    assert torch.allclose(even[0], torch.full(SLAB, -np.log(np.prod(SLAB))))
    assert torch.equal(even[1], complete)


def test_missing_parts_alone_are_computed_again_to_the_same_bits(
    store: Store, fitted: Experiment
) -> None:
    compute_base_maps(fitted, store, workers=0)
    maps = maps_of(fitted)
    assert len(maps.parts) == 2
    first, second = map(maps.path, maps.parts)
    content, written = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    compute_base_maps(fitted, store, workers=0)
    assert first.read_bytes() == content
    assert second.stat().st_mtime_ns == written


def trained(store: Store, runs: Path) -> Stage:
    """Train both stages."""
    own = with_fitted_base(base_map_experiment(store, runs), store)
    compute_base_maps(own, store, workers=0)
    pretrained = train(pretrain_stage(SETTINGS, own))
    stage = finetune_stage(SETTINGS, own, pretrained)
    train(stage)
    return stage


def test_both_stages_and_the_bundle_read_one_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = trained(store, tmp_path / "runs")
    base = stage.experiment.base
    assert base is not None
    assert stage.identity["spatial_prior"] == base.digest
    assert stage.pretrained is not None
    assert stage.pretrained.identity["spatial_prior"] == base.digest
    path = tmp_path / "bundle"
    export_bundle(stage, store, path, sampler=SAMPLER)
    bundle = load_bundle(path)
    assert bundle.base is not None
    assert (path / SPATIAL_FILE).read_bytes() == base.path.read_bytes()
    assert bundle.model.base_map is not None
    assert torch.equal(bundle.model.base_map.voxels, read_spatial_base(base.path).base_map.voxels)

    evaluations = []
    log_density = SpatialBase.log_density

    def counted(self: SpatialBase, *inputs: object) -> np.ndarray:
        evaluations.append(1)
        return log_density(self, *inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(SpatialBase, "log_density", counted)
    sampler = bundle_sampler(bundle, store, device="cpu")
    for arm in range(3):
        sampler(tuple(Sample(EnsembleRequest(1, arm), seed) for seed in range(4)))
    assert len(evaluations) == 1
    sampler((Sample(EnsembleRequest(1, 0, ("w000",)), 0), Sample(EnsembleRequest(2, 0), 0)))
    assert len(evaluations) == 3

    # The networks hardly moved, so the map is the prior's: it follows the patient's own images.
    predict = make_map_predictor(bundle, PatientEncoder(bundle, device="cpu"))
    inputs = store_reader(store, bundle.config.model)(ModelInput(1))
    found = np.log(predict(inputs, 0))
    own = bundle.base.log_density(inputs.condition, inputs.parcellation)
    floored = np.maximum(own, -np.log(own.size) - LEAST_DENSITY)
    assert np.corrcoef(found.ravel(), floored.ravel())[0, 1] > 0.9

    altered = bytearray((path / SPATIAL_FILE).read_bytes())
    altered[-2] ^= 1
    (path / SPATIAL_FILE).write_bytes(altered)
    with pytest.raises(BundleError, match=r"spatial_prior.safetensors: expected the file that"):
        load_bundle(path)


def test_a_file_that_is_no_prior_is_named(tmp_path: Path) -> None:
    (tmp_path / "prior").write_bytes(b"something else")
    with pytest.raises(BundleError, match="prior: expected a spatial prior, got"):
        read_spatial_base(tmp_path / "prior")


def test_the_loss_reads_the_base_maps(store: Store, tmp_path: Path) -> None:
    """The first loss of untrained networks is lower with each case's base than with an even one."""
    losses = []
    for even in (False, True):
        runs = tmp_path / str(even)
        own = with_fitted_base(base_map_experiment(store, runs), store)
        compute_base_maps(own, store, workers=0)
        maps = maps_of(own)
        if even:
            for part in maps.parts:
                flat = np.full_like(np.load(maps.path(part)), -np.log(np.prod(SLAB)))
                np.save(maps.path(part), flat)
        settings = replace(SETTINGS, steps=1, learning_rate=1e-8, flair_weight=0.0)
        last = train(pretrain_stage(settings, own))
        metrics = (last.folder.parent / "metrics.jsonl").read_text().splitlines()[-1]
        losses.append(float(metrics.split('"loss": ')[1].split(",")[0]))
    assert losses[0] < losses[1]


def test_touching_ratios_come_from_training_cases_with_a_parcellation(store: Store) -> None:
    outcome, labels = np.zeros(SLAB, bool), np.full(SLAB, 2, np.int16)
    outcome[2, 3:5, 3:6], labels[2, 3, 3] = True, 3  # one voxel of six in the cortex
    inputs = SpatialInputs({}, store.spec.spacing, labels)
    without = replace(inputs, parcellation=None)
    cases = [SpatialCase(inputs, outcome), SpatialCase(without, outcome)]
    assert ratios_of_cases(cases) == pytest.approx({"white_matter": 6 / 5, "cortex": 6.0})
    assert ratios_of_cases(cases[1:]) == {}


def test_a_run_records_its_touching_ratios(store: Store, tmp_path: Path) -> None:
    experiment = base_map_experiment(store, tmp_path)
    assert ratios_of_run(experiment) == {}
    fitted = with_fitted_base(experiment, store)
    assert ratios_of_run(fitted) == {}  # this store has no parcellation
    assert fitted.base is not None
    record = read_record(fitted.base.path)
    write_spatial_base(
        fitted.base.path,
        read_spatial_base(fitted.base.path),
        record | {TOUCHING: {"white_matter": 1.1, "cortex": 2.0}},
    )
    assert ratios_of_run(fitted) == {"white_matter": 1.1, "cortex": 2.0}
