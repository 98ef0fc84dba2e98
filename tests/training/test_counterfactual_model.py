"""Counterfactual model (paper, section 4.4): baseline images alone, from training to forecast."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.bundle.compatibility import comparison_sessions, input_sessions, supported_sessions
from lesioncast.config import load_config
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.settings.networks import CONDITION, ControlConfig
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.errors import ConfigError
from lesioncast.forecasting.output.bids import forecast_path
from lesioncast.forecasting.output.summary import RunProvenance
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    bids_flair,
    plan_forecast,
    subjects_to_forecast,
    write_forecasts,
)
from lesioncast.forecasting.runtime import build_sampler, store_reader
from lesioncast.forecasting.sampling import ModelInput
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.channels import CHANNELS, SESSIONS, parse_channels
from lesioncast.training.data.node_cache import open_cases, read_in_process
from lesioncast.training.data.selection import training_cases
from lesioncast.training.experiment import Experiment, finetune_stage, pretrain_stage
from lesioncast.training.export import export_bundle
from lesioncast.training.randomness import ConditionDropout
from lesioncast.training.trainer import train
from storage import Store
from tests.support.forecast import SLAB, SPEC, write_store
from tests.support.training import MODEL, SETTINGS

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
W000 = ("w000/flair", "w000/t2", "w000/gad")
SETTINGS_OF_STAGE = replace(SETTINGS, steps=2, warmup=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Bundle, Experiment]:
    """Return a store, the bundle trained on it with baseline channels, and the experiment."""
    folder = tmp_path_factory.mktemp("counterfactual")
    store = write_store(folder / "store.zarr", folder / "bids", test=2, train=8)
    unet = replace(MODEL.unet, slices=SLAB[0], arms=len(SPEC.arms))
    control = replace(MODEL.control, condition=W000)
    experiment = Experiment(
        replace(MODEL, arms=SPEC.arms, unet=unet, control=control),
        replace(training_cases(store, SPEC.arms), roots=(folder / "cache",)),
        folder / "runs",
        seed=7,
    )
    stage = finetune_stage(
        SETTINGS_OF_STAGE, experiment, train(pretrain_stage(SETTINGS_OF_STAGE, experiment))
    )
    train(stage)
    export_bundle(stage, store, folder / "bundle", sampler=SamplerConfig(num_steps=2))
    return store, load_bundle(folder / "bundle"), experiment


def test_counterfactual_preset_differs_from_the_paper_in_its_condition_only() -> None:
    paper, preset = (load_config(CONFIGS / f"{name}.yaml") for name in ("paper", "counterfactual"))
    assert preset.control.condition == W000
    assert replace(preset, name="paper", control=paper.control) == paper
    assert replace(preset.control, condition=CONDITION) == paper.control
    with torch.device("meta"):
        first = ControlNet(preset.control, preset.unet).hint[0]
    assert first.in_channels == 45


def test_paper_conditions_on_every_channel_before_w096() -> None:
    before_w096 = [
        f"{session}/{channel}"
        for session in SESSIONS[:2]
        for channel in CHANNELS
        if (session, channel) != ("w000", "net2")  # nothing is new at the first session
    ]
    assert list(ControlConfig().condition) == before_w096


@pytest.mark.parametrize("config", ["demo", "small", "paper"])
def test_every_configuration_accepts_the_baseline_condition(config: str) -> None:
    override = f"control.condition=[{', '.join(W000)}]"
    assert load_config(CONFIGS / f"{config}.yaml", [override]).model.control.channels == 3


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("[w000/flair, w096/net2]", "exist before the outcome, got w096/net2; nearest: w048/n"),
        ("[w096/flair]", "got w096/flair; nearest: w048/flair"),
        ("[w000/t3]", "control: condition: expected .* got w000/t3; nearest: w000/t2"),
        ("[w000/net2]", "got w000/net2; nearest: w000/t2"),
        ("[]", r"one or more channels, each once, got \[\]"),
        ("[w000/t2, w000/t2]", r"each once, got \[w000/t2, w000/t2\]; name each channel once"),
    ],
)
def test_invalid_condition_channels_are_rejected(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CONFIGS / "demo.yaml", [f"control.condition={condition}"])


def test_training_batch_has_the_named_channels_only(
    trained: tuple[Store, Bundle, Experiment],
) -> None:
    _, _, experiment = trained
    cases = open_cases(experiment.cases, read_in_process)
    rows = np.arange(4)

    def condition(names: tuple[str, ...]) -> torch.Tensor:
        dropout = ConditionDropout(
            *(np.zeros(shape, bool) for shape in (4, (4, len(names)), (4, 0)))
        )
        batch = cases.batch(rows, dropout, null_arm=3, condition=parse_channels(names))
        assert batch.condition is not None
        return batch.condition

    assert torch.equal(condition(W000), condition(CONDITION)[:, :3])
    assert torch.equal(condition(("w048/net2",)), condition(CONDITION)[:, 6:])


def test_bundle_states_its_condition_channels(
    trained: tuple[Store, Bundle, Experiment],
) -> None:
    store, bundle, _ = trained
    assert bundle.config.model.control.condition == W000
    assert (
        "a patient's images (w000/flair, w000/t2, w000/gad)"
        in (bundle.path / "README.md").read_text()
    )

    def condition(channels: tuple[str, ...]) -> np.ndarray:
        control = replace(bundle.config.model.control, condition=channels)
        return store_reader(store, replace(bundle.config.model, control=control))(
            ModelInput(0)
        ).condition

    assert condition(W000).shape == (3, *SLAB)
    np.testing.assert_array_equal(condition(W000), condition(CONDITION)[:3])


def test_baseline_bundle_supports_baseline_images_only(
    trained: tuple[Store, Bundle, Experiment],
) -> None:
    """A baseline bundle compares arms on all its images, even if trained with session dropout."""
    bundle = replace(trained[1], config=replace(trained[1].config, baseline_only=True))
    assert supported_sessions(bundle) == (("w000",),)
    assert comparison_sessions(bundle) is None


def test_forecast_of_a_baseline_bundle_names_the_baseline_image_as_its_source(
    trained: tuple[Store, Bundle, Experiment], tmp_path: Path
) -> None:
    store, bundle, _ = trained
    settings = ForecastSettings(samples=2, batch_size=3)
    cases = subjects_to_forecast(store, (), number=1)
    batches = plan_forecast(store, cases, settings=settings, seed=0).batches(settings.batch_size)
    sampler = build_sampler(bundle.path, store.path, device="cpu")
    run = ForecastRun(
        settings=settings,
        provenance=RunProvenance(
            bundle.digest,
            0,
            sessions=input_sessions(bundle),
            condition=bundle.config.model.control.condition,
        ),
        out=tmp_path,
        background=bids_flair(Path(store.table.bids)),
    )
    summaries = write_forecasts(store, cases, map(sampler, batches), run)
    assert list(next(summaries).arms) == list(SPEC.arms)
    image = forecast_path(tmp_path, "sub-01", "placebo")
    sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/ses-w000/anat/sub-01_ses-w000_FLAIR.nii.gz"]
    assert "ses-w048" in sidecar["SpatialReference"]
