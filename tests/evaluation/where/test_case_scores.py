"""Maps and masks of one case: what the networks are shown, and the law on the slab's own grid."""

import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lesioncast.bundle.bundle import load_bundle
from lesioncast.evaluation.features.image_features import lesion_voxels
from lesioncast.evaluation.reporting.drawings.patients import patients_picture
from lesioncast.evaluation.reporting.where_figure import map_picture
from lesioncast.evaluation.where.case_scores import (
    Baselines,
    NetworkMaps,
    build_case_scorer,
    exact_law,
)
from lesioncast.evaluation.where.density import brain_of, density_in
from lesioncast.evaluation.where.mask_draws import StoredLesions
from lesioncast.evaluation.where.measurements import (
    ATLAS,
    CLIMATOLOGY,
    EVEN,
    INDEPENDENT_VOXELS,
    NETWORKS,
    OTHER_HISTORY,
    OTHER_IMAGES,
    PRIOR_OTHER_HISTORY,
    PRIOR_OTHER_IMAGES,
    RINGS,
    SAMPLES,
    SPATIAL_PRIOR,
    STORED_LESIONS,
    WhereMeasurements,
    WhereTask,
)
from lesioncast.evaluation.where.rings import NUMBER_OF_RINGS
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.regional_risk import risk_of_region
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ConditioningArrays, ModelInput
from lesioncast.simulation.bids import initialise_dataset, subject_name, write_subjects
from lesioncast.simulation.outcome_law.redraw import last_period
from lesioncast.simulation.settings import SimulationSettings
from storage import Store
from storage.nifti.io import read_volume
from storage.preprocess.grid import place_slab, to_slab
from storage.settings import StoreSettings
from storage.trial.dataset import SourceFile
from tests.support.forecast import SLAB, write_bundle, write_store
from tests.training.base_map_runs import write_base_map_bundle

SIMULATION = SimulationSettings(subjects=300, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("trial")
    write_bundle(folder / "bundle", lesion_loads=(1, 4))
    return write_store(folder / "store.zarr", folder / "bids", test=4)


def test_a_case_is_scored_by_every_map_and_by_sampled_masks(store: Store) -> None:
    rates = np.linspace(1, 2, NUMBER_OF_RINGS)
    score = build_case_scorer(
        Path(str(store.path)).parent / "bundle",
        store.path,
        Baselines(np.ones(SLAB), rates),
        None,
        device="cpu",
    )
    observed = store.read(1).masks[2, 2] > 0
    mask = lesion_voxels(observed)
    task = WhereTask(1, sampled=(mask, mask), climatology=(mask[:0], mask[:0]), other=3)
    found = score(replace(task, keep_maps=True))
    assert list(found.maps) == [EVEN, ATLAS, RINGS, NETWORKS, OTHER_IMAGES, OTHER_HISTORY, SAMPLES]
    assert found.lesion_voxels + found.lesion_voxels_outside == observed.sum()
    assert found.maps[EVEN].nats_case == pytest.approx(0)  # this atlas is even
    assert found.maps[SAMPLES].auc == pytest.approx(1)
    assert list(found.samples) == [NETWORKS, CLIMATOLOGY]
    assert found.samples[NETWORKS].kernel == pytest.approx(np.zeros(3), abs=1e-3)
    assert found.samples[CLIMATOLOGY].kernel == pytest.approx(found.kernel_of_empty)
    assert found.figure is not None
    assert found.figure.maps[NETWORKS][found.figure.brain].mean() == pytest.approx(1, rel=1e-4)
    picture = map_picture(store, 1, found.figure)
    assert "networks, marginal map" in picture.alt
    assert Image.open(BytesIO(picture.png)).size[0] > 800
    quiet = score(WhereTask(0, (mask,) * 2, (mask,) * 2, score_samples=False))
    assert quiet.maps == {}
    assert quiet.samples == {}


def test_exchanged_images_and_exchanged_histories_reach_the_networks() -> None:
    arrays = {
        index: ConditioningArrays(np.full((3, 1, 1, 1), float(index), np.float32), np.zeros(0))
        for index in (5, 7)
    }
    shown = []

    def predict(inputs: ConditioningArrays, arm: int) -> np.ndarray:
        shown.append((inputs.condition.ravel().tolist(), arm))
        return np.ones((1, 1, 1), np.float32)

    networks = NetworkMaps(predict, lambda key: arrays[key.case], masks=[1, 2])
    networks.maps(WhereTask(5, (), (), other=7), arm=4)
    assert shown == [([5, 5, 5], 4), ([7, 7, 7], 4), ([5, 7, 7], 4)]
    assert arrays[5].condition.ravel().tolist() == [5, 5, 5]
    shown.clear()
    networks.maps(WhereTask(5, (), ()), arm=4)
    assert len(shown) == 1


def test_the_spatial_prior_sees_what_the_networks_see() -> None:
    arrays = {
        index: ConditioningArrays(
            np.full((2, 1, 1, 1), float(index), np.float32),
            np.zeros(0),
            np.full((1, 1, 1), index, np.int16),
        )
        for index in (5, 7)
    }

    def prior(inputs: ConditioningArrays) -> np.ndarray:
        return np.array([*inputs.condition.ravel(), *inputs.parcellation.ravel()])

    def predict(inputs: ConditioningArrays, arm: int) -> np.ndarray:
        return prior(inputs) + 100

    networks = NetworkMaps(predict, lambda key: arrays[key.case], [1], prior)
    maps = networks.maps(WhereTask(5, (), (), other=7), arm=0)
    # FLAIR, masks, parcellation: another patient's lesion history leaves the anatomy.
    seen = {SPATIAL_PRIOR: [5, 5, 5], PRIOR_OTHER_IMAGES: [7, 7, 7], PRIOR_OTHER_HISTORY: [5, 7, 5]}
    for key, expected in seen.items():
        assert maps[key].tolist() == expected
    for key, of_prior in zip((NETWORKS, OTHER_IMAGES, OTHER_HISTORY), seen.values(), strict=True):
        assert maps[key].tolist() == [value + 100 for value in of_prior]


def test_a_bundle_with_a_spatial_prior_scores_it_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=4, train=40)
    write_base_map_bundle(tmp_path / "bundle", store)
    score = build_case_scorer(
        tmp_path / "bundle",
        store.path,
        Baselines(
            np.ones(SLAB),
            np.ones(NUMBER_OF_RINGS),
            StoredLesions.of_masks([store.read(1).masks[2, 2] > 0]),
        ),
        None,
        device="cpu",
    )
    mask = lesion_voxels(store.read(1).masks[2, 2] > 0)
    task = WhereTask(1, (mask, mask[:0]), (mask,) * 2, other=3, keep_maps=True, p_active=0.4)
    found = score(task)
    bundle = load_bundle(tmp_path / "bundle")
    inputs = store_reader(store, bundle.config.model)(ModelInput(1))
    assert bundle.base is not None
    density = np.exp(bundle.base.log_density(inputs.condition, inputs.parcellation))
    brain = brain_of(store.read(1))
    inside = density_in(brain, density)[(store.read(1).masks[2, 2] > 0)[brain]]
    gain = np.log(inside * brain.sum()).sum()  # this atlas is even
    assert found.maps[SPATIAL_PRIOR].nats_case == pytest.approx(gain, rel=1e-5)
    assert gain > 1
    assert found.maps[NETWORKS].nats_case > 1
    assert PRIOR_OTHER_IMAGES in found.maps
    # The second sample has no lesion, and the stored lesion is as large as the first.
    assert found.samples[STORED_LESIONS].voxels == len(mask) / 2
    assert 0 < found.samples[INDEPENDENT_VOXELS].voxels < 2 * len(mask)
    where = WhereMeasurements((found,), np.ones(3), np.ones(NUMBER_OF_RINGS))
    picture = patients_picture(store, where)  # the same patient has few and many
    assert picture is not None
    volume = 4 * np.prod(store.spec.spacing)
    said = f"Forecast: 40% for any new lesion. Observed: few (1, {volume:.0f} mm3)."
    assert said in picture.alt
    assert picture.alt.startswith("Patients")  # this trial is not called simulated
    assert Image.open(BytesIO(picture.png)).size[0] > 1500
    assert found.figure is not None
    networks = replace(found.figure, maps={NETWORKS: found.figure.maps[NETWORKS]})
    plain = replace(where, cases=(replace(found, figure=networks),))
    assert patients_picture(store, plain) is None
    assert patients_picture(store, replace(where, cases=())) is None


def test_the_law_lies_on_the_slab_of_the_case_and_other_files_have_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = next(i for i in range(30) if last_period(SIMULATION, i).number > 2)
    initialise_dataset(tmp_path, SIMULATION)
    write_subjects(tmp_path, SIMULATION, [index])
    name = subject_name(index)

    def read(channel: str, pattern: str) -> object:
        (path,) = tmp_path.glob(pattern.format(name))
        return read_volume(SourceFile(name, "w096", channel, path))

    flair = read("flair", "{0}/ses-w048/anat/*_FLAIR.nii.gz")
    net2 = read("net2", "derivatives/lesions/{0}/ses-w096/anat/*NET2_mask.nii.gz")
    settings = StoreSettings(slab=(15, 64, 56), spacing=(3.0, 3.0, 3.0), resample=False)
    grid = place_slab(flair, settings=settings, brain=None)
    arm = last_period(SIMULATION, index).patient.arm
    case = SimpleNamespace(subject=name, arm=arm, grid=grid)
    observed = to_slab(net2.data, grid, order=0) > 0
    law = exact_law(SIMULATION, case, observed)
    assert law is not None
    density = law.density()
    assert density.shape == observed.shape == (15, 64, 56)
    assert (density[observed] > 0).all()
    assert density[observed].mean() > 5 * density.mean()
    assert law.redraw(0).shape == observed.shape
    # The same voxels one column further are another subject's files.
    assert exact_law(SIMULATION, case, np.roll(observed, 1, axis=2)) is None
    with caplog.at_level(logging.WARNING):
        assert exact_law(SIMULATION, SimpleNamespace(subject="sub-X", arm=arm), observed) is None
    assert "sub-X: expected the subject of the trial's simulation settings" in caplog.text


def test_regional_risks_come_from_the_networks_map_of_every_case() -> None:
    labels = np.array([[[2, 3, 0, 0]]], np.int16)
    images = SimpleNamespace(parcellation=labels)
    arrays = ConditioningArrays(np.zeros((1, 1, 1, 4), np.float32), np.zeros(0))
    asked: list[int] = []

    def predict(_: ConditioningArrays, arm: int) -> np.ndarray:
        asked.append(arm)
        return np.array([[[0.2, 0.1, 0.1, 0.0]]], np.float32)

    networks = NetworkMaps(
        predict, lambda _: arrays, [0], ratios={"white_matter": 2.0, "cortex": 1.0}
    )
    expected = ExpectedOutcomes(0.5, 0.8, 0.3, load_edges=(0.5,), class_lesions=(0.0, 1.6))
    task = WhereTask(0, (), (), expected=expected)
    # A quiet case's map is computed for it; an active case has its map already.
    risks = networks.regions(task, 3, images, None)
    assert asked == [3]
    assert risks == {
        "white_matter": pytest.approx(0.5),
        "cortex": pytest.approx(risk_of_region(0.25, expected)),
    }
    assert networks.regions(task, 3, images, predict(arrays, 3)) == risks
    assert networks.regions(replace(task, expected=None), 3, images, None) == {}
    outside = SimpleNamespace(parcellation=np.zeros_like(labels))
    assert networks.regions(task, 3, outside, None) == {}
    assert replace(networks, ratios={}).regions(task, 3, images, None) == {}
    assert len(asked) == 2
