"""What the prior is fitted to is what it reads of a patient in a forecast."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import load_bundle, load_bundle_prior
from lesioncast.diffusion.controlnet import build_lesion_load_prior
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import CONDITION, ControlConfig
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.runtime import make_expectation_predictor, store_reader
from lesioncast.forecasting.sampling import ModelInput
from lesioncast.imaging.channels import encode_case, parse_channels
from lesioncast.priors.flair_reader.reader import NUMBERS
from lesioncast.training.data.selection import training_cases
from lesioncast.training.experiment import Experiment, finetune_stage, pretrain_stage
from lesioncast.training.export import export_bundle
from lesioncast.training.lesion_load_prior.data import fit_reader, load_prior_data, with_readings
from lesioncast.training.trainer import train
from storage import Store
from tests.support.forecast import SPEC, UNET, write_store
from tests.support.training import SETTINGS

W000 = ("w000/flair", "w000/t2", "w000/gad")


def model_of(condition: tuple[str, ...] = CONDITION, *, flair_reader: bool = True) -> ModelConfig:
    spacing = SPEC.spacing if flair_reader else None
    unet = replace(UNET, lesion_load_thresholds=(1, 4))
    return ModelConfig(SPEC.arms, unet, ControlConfig(condition, flair_reader_spacing=spacing))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("prior")
    return write_store(folder / "store.zarr", folder / "bids", test=0, train=4)


@pytest.mark.parametrize("condition", [CONDITION, W000])
def test_training_reads_flair_as_a_forecast_does(store: Store, condition: tuple[str, ...]) -> None:
    model = model_of(condition)
    torch.manual_seed(0)
    prior = build_lesion_load_prior(model.control, model.unet, ())
    data = with_readings(prior, load_prior_data(store.cases, store, model))
    channels = parse_channels(condition)
    images = [torch.from_numpy(encode_case(store.read(k), channels=channels)) for k in range(4)]
    # Training keeps the features of candidates as half floats.
    read = prior.read(torch.stack(images))
    torch.testing.assert_close(data.readings[:, 1], read[:, 1], rtol=0.02, atol=0.02)
    assert read[:, 1].abs().sum(1).min() > 0
    assert data.patient_features(prior).shape == (4, 3 * len(condition) + NUMBERS)


def test_a_model_without_a_reader_reads_no_candidates(store: Store) -> None:
    model = model_of(flair_reader=False)
    prior = build_lesion_load_prior(model.control, model.unet, ())
    loaded = load_prior_data(store.cases, store, model)
    assert loaded.reader_cases is None
    assert fit_reader(prior, loaded, seed=0) is loaded.data
    assert loaded.data.patient_features(prior).shape == (4, 3 * len(CONDITION))


def test_masks_teach_the_reader_even_if_the_networks_do_not_see_them(store: Store) -> None:
    loaded = load_prior_data(store.cases, store, model_of(("w000/flair", "w048/flair")))
    assert loaded.reader_cases is not None
    assert (loaded.reader_cases.change_masks != 0).any()


def test_a_bundle_carries_the_fitted_reader_and_prior(store: Store, tmp_path: Path) -> None:
    selection = replace(training_cases(store, SPEC.arms), roots=(tmp_path / "cache",))
    experiment = Experiment(model_of(), selection, tmp_path / "runs", seed=7)
    short = replace(SETTINGS, steps=2, warmup=1, checkpoint_every=2)
    stage = finetune_stage(short, experiment, train(pretrain_stage(short, experiment)))
    train(stage)
    path = tmp_path / "bundle"
    export_bundle(stage, store, path, sampler=SamplerConfig(num_steps=2))
    prior = load_bundle(path).model.control.lesion_load_prior
    weights = load_bundle_prior(path).priors[0].state_dict()
    assert all(torch.equal(weights[name], value) for name, value in prior.state_dict().items())
    assert prior.reader.spacing == SPEC.spacing
    assert (prior.reader.scale != 1).any()
    predict = make_expectation_predictor([prior], model_of(), device="cpu")
    read = store_reader(store, model_of())
    # Cases 0 and 3 received arm 0. One of them is active, and half a case is taken from no share.
    of_arm = [predict(read(ModelInput(case)))[0].p_active for case in (0, 3)]
    assert np.mean(of_arm) == pytest.approx(0.5, abs=0.01)
