"""Both training jobs, from a converted store through Ray Data to a bundle."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from lesioncast.bundle.bundle import load_bundle
from lesioncast.cluster.connection import RaySettings
from lesioncast.errors import ForecastError, TrainingError
from lesioncast.forecasting.training_data import check_unseen, training_data_note
from lesioncast.jobs import convert, finetune, pretrain
from lesioncast.training.data.node_cache import open_cases, read_in_process, read_with_ray_data
from lesioncast.training.data.node_caches import prepare_nodes
from lesioncast.training.data.selection import training_cases
from storage import Store, StoreSettings, open_store
from tests.support.bids import ARMS, write_trial

SLAB, SPACING = (3, 8, 8), (3.0, 2.0, 2.0)
CONFIG = {
    "name": "tiny",
    "arms": list(ARMS),
    "simulation": {"subjects": 8, "shape": [8, 16, 16], "spacing": [3.0, 8.0, 8.0]},
    "store": {"slab": list(SLAB), "spacing": list(SPACING), "resample": False},
    "unet": {
        "slices": 3,
        "arms": 3,
        "widths": [8, 16],
        "down_blocks": 1,
        "attention_stages": [],
        "groups": 4,
    },
    "pretrain": {"steps": 4, "batch_size": 4, "warmup": 1, "workers": 0, "checkpoint_every": 2},
    "finetune": {
        "steps": 4,
        "batch_size": 4,
        "warmup": 1,
        "workers": 0,
        "channel_dropout": 0.1,
        "session_dropout": 0.2,
    },
    "sampler": {"num_steps": 2},
}

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:::ray.data.context"),  # Ray Data warns of its own defaults
]


@pytest.fixture(scope="module")
def store(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Convert a trial of twelve subjects, who are said to be simulated, and move it away."""
    folder = tmp_path_factory.mktemp("trial")
    write_trial(folder / "bids", 12)
    description = {"Name": "A made-up trial", "SimulatedWith": {"seed": 0}}
    (folder / "bids/dataset_description.json").write_text(json.dumps(description))
    where = ["--bids", str(folder / "bids"), "--store", str(folder / "store.zarr")]
    assert convert.main([*given(folder), *where]) == 0
    (folder / "bids").rename(folder / "moved")
    return open_store(folder / "store.zarr")


def given(folder: Path) -> list[str]:
    """Write the configuration to `folder` and return the arguments that name it."""
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    return ["--config", str(config)]


def test_ray_data_and_a_single_process_read_the_same_cases(store: Store, tmp_path: Path) -> None:
    cache = replace(training_cases(store, ARMS), roots=(tmp_path,))
    streamed = open_cases(cache, read_with_ray_data)
    alone = open_cases(replace(cache, digest="alone"), read_in_process)
    for name in ("flair", "masks", "present", "arm", "active"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(alone, name))
    for row, index in enumerate(cache.cases):
        arrays = store.read(index)
        np.testing.assert_array_equal(streamed.flair[row], arrays.flair)
        assert ARMS[streamed.arm[row]] == store.cases[index].arm
        assert streamed.active[row] == arrays.masks[2, 2].any()


def test_every_node_gets_its_cache_before_the_workers_start(store: Store, tmp_path: Path) -> None:
    cache = replace(training_cases(store, ARMS), roots=(tmp_path,))
    prepare_nodes(cache, accelerator_type=None)
    assert (tmp_path / cache.name).is_dir()


def test_a_node_without_the_requested_gpu_reads_nothing(store: Store, tmp_path: Path) -> None:
    cache = replace(training_cases(store, ARMS), roots=(tmp_path,))
    prepare_nodes(cache, accelerator_type="A100")
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_other_arms_is_rejected(store: Store) -> None:
    with pytest.raises(TrainingError, match="expected the arms placebo, avonex, got placebo, avon"):
        training_cases(store, ("placebo", "avonex"))


def test_only_the_training_split_is_used_for_training(store: Store) -> None:
    splits = {store.cases[index].split for index in training_cases(store, ARMS).cases}
    assert splits == {"train"}


def test_without_workers_both_jobs_train_without_a_cluster(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(settings: RaySettings | None, **_: object) -> AbstractContextManager[None]:
        assert settings is None
        return nullcontext()

    where = ["--store", str(store.path), "--out", str(tmp_path / "runs")]
    for job in (pretrain, finetune):
        monkeypatch.setattr(job, "ray_cluster", start)
    assert pretrain.main([*given(tmp_path), *where]) == 0
    assert finetune.main([*given(tmp_path), *where, "--bundle", str(tmp_path / "bundle")]) == 0


def test_both_jobs_write_a_bundle_and_resume(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LESIONCAST_ROOT", str(tmp_path))
    monkeypatch.setenv("LESIONCAST_CACHE", str(tmp_path / "cache"))
    command = [*given(tmp_path), "--store", str(store.path)]
    caplog.set_level("INFO", "lesioncast")

    assert finetune.main(command) == 1
    assert "run jobs/pretrain.py first" in caplog.text
    assert pretrain.main(command) == 0
    assert finetune.main(command) == 0
    bundle = load_bundle(tmp_path / "tiny/bundle")
    assert bundle.config.baseline_only
    assert bundle.config.model.arms == ARMS
    assert bundle.config.store == store.settings == StoreSettings(SLAB, SPACING, resample=False)
    assert (bundle.config.simulated, bundle.config.brain_mask_share) == (True, 0.0)
    check_unseen(bundle, store.select(split="test"))
    training = [store.cases[index] for index in training_cases(store, ARMS).cases]
    with pytest.raises(ForecastError, match=f"trained on {len(training)} of them, such as sub-"):
        check_unseen(bundle, training)
    assert training_data_note(bundle.path).endswith(
        "training cases of A made-up trial; simulated patients, which are no evidence about real "
        "ones."
    )

    assert finetune.main(command) == 0
    assert "finetune: finished already" in caplog.text
    assert load_bundle(tmp_path / "tiny/bundle").digest == bundle.digest
    assert finetune.main([*command, "--set", "finetune.learning_rate=1.0"]) == 1
    assert "finetune.learning_rate was 0.0001, is 1.0" in caplog.text
    assert finetune.main([*command, "--set", "finetune.learning_rate=1.0", "--fresh"]) == 0
    assert load_bundle(tmp_path / "tiny/bundle").digest != bundle.digest


def test_a_covariate_that_the_store_lacks_stops_stage_one(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*given(tmp_path), "--store", str(store.path), "--set", "covariates=[age, weight]"]
    assert pretrain.main(command) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "expected some of age, edss, sex, got weight" in message


def test_an_unknown_key_is_a_usage_error(tmp_path: Path) -> None:
    assert pretrain.main([*given(tmp_path), "--set", "pretrain.stepz=3"]) == 2
