"""Covariates are an optional third condition; the paper's model has none."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.config import Config, load_config
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.covariates import covariate_features
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import CONDITION, ControlConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.errors import ConfigError
from lesioncast.forecasting.output.calibrated import NOT_CALIBRATED
from lesioncast.forecasting.output.summary import CovariateUse, RunProvenance
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    plan_forecast,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import (
    build_sampler,
    make_mask_sampler,
    store_reader,
)
from lesioncast.forecasting.sampling import BatchSampler, EnsembleRequest, Read, Sample
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.channels import parse_channels
from lesioncast.imaging.covariates import (
    Covariate,
    covariate_presence,
    encode_covariates,
    fit_covariates,
)
from lesioncast.imaging.intervals import IntervalRanges
from lesioncast.parsing import parse_dataclass
from lesioncast.training import randomness
from lesioncast.training.experiment import Experiment, experiment_of, finetune_stage, pretrain_stage
from lesioncast.training.export import export_bundle
from lesioncast.training.settings import DropoutRates
from lesioncast.training.trainer import train
from storage import Case, Store, VisitSchedule
from storage.preprocess.visits import Intervals
from tests.diffusion.test_networks import TINY, inputs, randomise
from tests.support.forecast import SLAB, SPEC, write_store
from tests.support.training import MODEL, SETTINGS, tiny_cases, tiny_experiment

AGE, SEX = Covariate("age", centre=40.0, scale=10.0), Covariate("sex", levels=("F", "M"))
BOTH = (AGE, SEX)
NAN = float("nan")
DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Write four test cases aged 30 to 36 and eight training cases aged 38 to 52.

    One of the cases has a known EDSS.
    """
    folder = tmp_path_factory.mktemp("store")
    return write_store(folder / "store.zarr", folder / "bids", test=4, train=8)


def without(store: Store) -> tuple[Case, ...]:
    return tuple(with_values(case) for case in store.cases)


def with_values(case: Case, **values: object) -> Case:
    return replace(case, covariates=values)


def config(**sections: object) -> Config:
    raw = {
        "name": "tiny",
        "arms": list(SPEC.arms),
        "simulation": {"subjects": 8, "shape": [8, 16, 16], "spacing": [3.0, 8.0, 8.0]},
        "store": {"slab": list(SLAB), "spacing": list(SPEC.spacing), "resample": False},
        "unet": {"slices": SLAB[0], "arms": 3, "widths": [8], "groups": 4, "attention_stages": []},
        "objective": {"prediction": "log_odds", "base_log_odds": 0.0, "lesion_weight": 1.0},
        "pretrain": asdict(replace(SETTINGS, learning_rate=1e-4)),
        "finetune": asdict(replace(SETTINGS, covariate_dropout=0.2)),
        "sampler": {"solver": "dpmsolver++", "num_steps": 3, "spacing": "logsnr"},
    }
    return parse_dataclass(Config, raw | sections, source="test")


def control_of(covariates: tuple[Covariate, ...], *, seed: int = 0) -> tuple[UNet, ControlNet]:
    torch.manual_seed(seed)
    unet = UNet(TINY)
    randomise(unet)
    return unet, ControlNet.from_unet(ControlConfig(burden=True), unet, covariates)


def test_numbers_are_standardised_on_the_training_cases_alone(store: Store) -> None:
    train_cases = store.select(split="train")
    age, sex = fit_covariates(["age", "sex"], train_cases)
    ages = [case.covariates["age"] for case in train_cases]
    assert (age.centre, age.scale) == (np.mean(ages), np.std(ages))
    assert age.centre != np.mean([case.covariates["age"] for case in store.cases])
    assert sex.levels == ("F", "M")
    values = np.array([encode_covariates([age], case) for case in train_cases])
    assert values.mean() == pytest.approx(0, abs=1e-6)
    assert values.std() == pytest.approx(1)


def test_the_days_between_sessions_are_covariates_where_they_are_known(store: Store) -> None:
    train_cases = store.select(split="train")
    (days,) = fit_covariates(["days_to_current"], train_cases)
    assert (days.centre, days.name) == (347.5, "days_to_current")
    unknown = replace(train_cases[0], intervals=Intervals())
    assert np.isnan(encode_covariates([days], unknown)).all()
    with pytest.raises(ConfigError, match="expected some of .*, got days_to_outcome"):
        fit_covariates(["days_to_outcome"], train_cases)


def test_a_fully_specified_covariate_is_not_fitted(store: Store) -> None:
    assert fit_covariates([AGE], store.cases) == (AGE,)


@pytest.mark.parametrize("unknown", ["ege", Covariate("ege")])
def test_an_unknown_name_raises_and_lists_the_available_ones(
    store: Store, unknown: str | Covariate
) -> None:
    with pytest.raises(
        ConfigError, match=r"expected some of age, days_to_current, edss, sex, got ege"
    ):
        fit_covariates(["age", unknown], store.cases)


def test_constant_unknown_and_mixed_covariates_raise(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"differ in edss, got no known value"):
        fit_covariates(["edss"], store.select(split="train"))
    same = [with_values(case, age=30) for case in store.cases]
    with pytest.raises(ConfigError, match=r"differ in age, got 30; leave it out"):
        fit_covariates(["age"], same)
    mixed = [with_values(same[0], age="old"), *same]
    with pytest.raises(ConfigError, match=r"numbers or words as age, got both, such as 30 and old"):
        fit_covariates(["age"], mixed)


@pytest.mark.parametrize(
    ("values", "encoded"),
    [
        ({"age": 50, "sex": "M"}, [1.0, 1.0]),
        ({"age": None, "sex": "F"}, [NAN, 0.0]),
        ({"age": "fifty", "sex": "X"}, [NAN, NAN]),
        ({}, [NAN, NAN]),
    ],
)
def test_missing_values_and_unknown_levels_are_encoded_as_nan(
    store: Store, values: dict, encoded: list[float]
) -> None:
    case = with_values(store.cases[0], **values)
    np.testing.assert_array_equal(encode_covariates(BOTH, case), encoded)
    assert covariate_presence(BOTH, case) == dict(
        zip(("age", "sex"), np.isfinite(encoded), strict=True)
    )


def test_a_missing_value_differs_from_every_value() -> None:
    values = torch.tensor([[NAN, NAN], [math.inf, NAN], [0.0, 0.0], [0.0, 1.0]])
    features = covariate_features(values, BOTH)
    absent = [0, 0, 0, 0, 0]
    assert features.tolist() == [absent, absent, [0, 1, 1, 0, 1], [0, 1, 0, 1, 1]]


def test_names_and_specified_covariates_may_be_mixed_in_a_configuration() -> None:
    given = ["covariates=[edss, {name: age, centre: 40.0, scale: 10.0}]"]
    assert load_config(DEMO, given).covariates == ("edss", AGE)
    assert load_config(DEMO).covariates == ()
    with pytest.raises(ConfigError, match=r"unknown key covariates\.level; nearest: levels"):
        load_config(DEMO, ["covariates=[{name: sex, level: [F, M]}]"])
    with pytest.raises(ConfigError, match=r"scale of age must be above 0, got 0"):
        load_config(DEMO, ["covariates=[{name: age, scale: 0}]"])


def test_untrained_covariates_change_nothing_to_the_last_bit() -> None:
    unet, control = control_of(BOTH)
    z, logsnr, arm, condition = inputs()
    with torch.no_grad():
        hint = control.encode(condition, torch.tensor([[1.0, 0.0], [NAN, 1.0]]))
        residuals = control(z, logsnr, arm, hint)
        assert torch.equal(unet(z, logsnr, arm, residuals), unet(z, logsnr, arm))


def test_all_other_weights_start_the_same_with_and_without_covariates() -> None:
    without, with_both = (control_of(covariates)[1].state_dict() for covariates in ((), BOTH))
    assert all(torch.equal(with_both[name], tensor) for name, tensor in without.items())
    assert {name.split(".")[0] for name in with_both.keys() - without.keys()} == {"covariates"}


@torch.no_grad()
def test_a_trained_network_tells_a_missing_value_from_the_mean() -> None:
    _, control = control_of(BOTH)
    randomise(control)
    condition = inputs(1)[3]
    rows = ([0.0, 0.0], [NAN, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, NAN])
    embeddings = [control.encode(condition, torch.tensor([row])).covariates for row in rows]
    assert all(not torch.equal(embeddings[0], other) for other in embeddings[1:])


@torch.no_grad()
def test_guidance_drops_the_covariates_with_the_arm_and_the_images() -> None:
    unet, control = control_of(BOTH)
    randomise(control)
    model = LesionDiffusion(unet, control, ModelConfig(("a", "b"), TINY, covariates=BOTH))
    z, logsnr, _, condition = inputs()
    arm, null = torch.tensor([0, 1]), torch.full((2,), TINY.null_arm)
    values = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])

    def x_hat(of: torch.Tensor, arm: torch.Tensor, guidance: float, **given: torch.Tensor):  # type: ignore[no-untyped-def]
        return model.denoiser(of, arm, guidance=guidance, **given)(z, logsnr)

    absent = torch.full((2, 2), NAN)
    unconditional = x_hat(torch.zeros_like(condition), null, 1.0, covariates=absent)
    without = x_hat(condition, arm, 0.0, covariates=values)
    assert torch.allclose(without, unconditional, atol=1e-5)
    assert not torch.equal(
        x_hat(condition, arm, 1.0, covariates=values), x_hat(condition, arm, 1.0)
    )


def test_covariates_drop_at_their_rates_and_do_not_change_other_drops() -> None:
    rates = DropoutRates(arm=0.3, condition=0.2, channel=0.1)
    size, none = 20_000, np.zeros(7, bool)
    before = randomness.condition_dropout(5, 0, batch_size=size, post_baseline=none, rates=rates)
    drawn = randomness.condition_dropout(
        5,
        0,
        batch_size=size,
        post_baseline=none,
        rates=replace(rates, covariate=0.25),
        covariates=4,
    )
    assert before.covariates.shape == (size, 0)
    np.testing.assert_array_equal(before.arm, drawn.arm)
    np.testing.assert_array_equal(before.channels, drawn.channels)
    all_dropped = drawn.covariates.all(1)
    assert abs(all_dropped.mean() - 0.25) < 0.013  # four standard errors
    assert np.abs(drawn.covariates[~all_dropped].mean(0) - 0.1).max() < 0.011
    others = np.column_stack([drawn.arm, drawn.channels.all(1), all_dropped])
    assert np.abs(np.corrcoef(others.T) - np.eye(3)).max() < 0.03


def test_a_dropped_covariate_is_nan_and_stage_one_gets_none(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    cases = tiny_cases(tmp_path, covariates=values)
    rows = np.array([3, 4])
    drops = randomness.ConditionDropout(
        np.zeros(2, bool), np.zeros((2, 7), bool), np.array([[False, True], [False, False]])
    )
    batch = cases.batch(rows, drops, null_arm=2, condition=parse_channels(CONDITION))
    np.testing.assert_array_equal(batch.covariates, [[6, NAN], [8, 9]])
    np.testing.assert_array_equal(values[3], [6, 7])
    assert cases.batch(rows, drops, null_arm=2, condition=None).covariates is None
    without = replace(cases, covariates=None).batch(
        rows, drops, null_arm=2, condition=parse_channels(CONDITION)
    )
    assert without.covariates is None


def with_covariates(experiment: Experiment) -> Experiment:
    """Return the tiny experiment with random ages and alternating sexes, some of them missing."""
    values = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    values[:, 1] = np.arange(10) % 2
    values[2] = NAN
    cases = replace(experiment.cases, covariates=values)
    return replace(experiment, cases=cases, model=replace(MODEL, covariates=BOTH))


def test_one_pretraining_serves_finetuning_with_and_without_covariates(tmp_path: Path) -> None:
    plain = tiny_experiment(tmp_path)
    pretrained = train(pretrain_stage(SETTINGS, plain))
    assert train(pretrain_stage(SETTINGS, with_covariates(plain))) == pretrained
    settings = replace(SETTINGS, covariate_dropout=0.2)
    last = train(finetune_stage(settings, with_covariates(plain), pretrained))
    weights = last.tensors("weights", "control.covariates.")
    assert set(weights) == {f"layers.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}
    assert weights["layers.2.weight"].abs().sum() > 0


@pytest.fixture(scope="module")
def bundle(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Train both stages on the store's ages and sexes, starting from even odds of a lesion."""
    folder = tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LESIONCAST_CACHE", str(folder / "cache"))
        given = config(covariates=["age", "sex"])
        experiment = experiment_of(
            store,
            folder / "runs",
            model=given.model,
            covariates=given.covariates,
            seed=given.seed,
        )
        pretrained = train(pretrain_stage(given.pretrain, experiment))
        stage = finetune_stage(given.finetune, experiment, pretrained)
        train(stage)
    export_bundle(stage, store, folder / "bundle", sampler=given.sampler)
    return load_bundle(folder / "bundle")


def test_a_bundle_stores_the_covariates_that_training_fitted(store: Store, bundle: Bundle) -> None:
    expected = fit_covariates(["age", "sex"], store.select(split="train"))
    assert bundle.config.model.covariates == expected
    card = (bundle.path / "README.md").read_text()
    assert "- Covariates, each of which may be missing: age, sex." in card


def test_a_bundle_stores_the_days_between_sessions_of_its_training_cases(bundle: Bundle) -> None:
    assert bundle.config.intervals == IntervalRanges((330.0, 365.0), None)
    assert bundle.config.visits == VisitSchedule()


def test_a_forecast_says_where_visits_differ_from_those_of_training(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    inside = replace(store.cases[1], intervals=Intervals(340, 350))
    beyond = replace(store.cases[2], intervals=Intervals(329, 200))
    visits = VisitSchedule(days=(0, 365, 730))
    other = replace(store, table=replace(store.table, spec=replace(store.spec, visits=visits)))

    def days(of: Store, case: Case) -> list[str]:
        settings = ForecastSettings(samples=2)
        batches = plan_forecast(of, [case], settings=settings, seed=0).batches(6)
        drawn = map(build_sampler(bundle.path, store.path, device="cpu"), batches)
        provenance = RunProvenance(
            bundle.digest, 0, intervals=bundle.config.intervals, visits=bundle.config.visits
        )
        run = ForecastRun(
            settings=settings, provenance=provenance, out=tmp_path, background=stored_flair(store)
        )
        (summary,) = write_forecasts(of, [case], drawn, run)
        assert summary.notes[-1] == NOT_CALIBRATED
        found = [one.text for one in summary.warnings if one.code == "days_outside_training"]
        assert found == list(summary.typicality.days_outside_training)
        return found

    assert days(store, inside) == []
    current, outcome = days(store, beyond)
    assert (
        "w048 is 329 days after w000 for this patient; the model was trained on 330 to" in current
    )
    assert (
        "w096 is 200 days after w048 for this patient; the model was trained on 336 pl" in outcome
    )
    (planned,) = days(other, inside)
    assert "trained on sessions planned for days 0, 336, 672; those of this patient are" in planned


def test_a_forecast_uses_the_stores_covariates_and_runs_without_them(
    store: Store, bundle: Bundle
) -> None:
    requests = [EnsembleRequest(case.index, arm) for case in store.cases[:3] for arm in range(3)]
    samples = tuple(Sample(request, 7) for request in requests)
    assert build_sampler(bundle.path, store.path, device="cpu")(samples).masks().any()
    loaded = load_bundle(bundle.path)
    torch.manual_seed(0)
    for network in (loaded.model.unet, loaded.model.control):
        for parameter in network.parameters():  # a training of seconds hardly moves them
            parameter.data.add_(0.2 * torch.randn_like(parameter))

    def masks(read: Read) -> np.ndarray:
        draw = make_mask_sampler(loaded, device="cpu")
        return BatchSampler(draw, read, spacing=store.spec.spacing)(samples).masks()

    bare = replace(store, table=replace(store.table, cases=without(store)))
    with_values_read, without_read = (
        store_reader(source, bundle.config.model) for source in (store, bare)
    )
    assert np.array_equal(masks(with_values_read), masks(with_values_read))
    assert not np.array_equal(masks(with_values_read), masks(without_read))


def test_a_summary_lists_used_and_missing_covariates(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    lacking = with_values(store.cases[1], sex="F")
    cases = [store.cases[0], lacking]
    settings = ForecastSettings(samples=2)
    batches = plan_forecast(store, cases, settings=settings, seed=0).batches(settings.batch_size)
    drawn = map(build_sampler(bundle.path, store.path, device="cpu"), batches)
    run = ForecastRun(
        settings=settings,
        provenance=RunProvenance(bundle.digest, 0, covariates=bundle.config.model.covariates),
        out=tmp_path,
        background=stored_flair(store),
    )
    assert [summary.covariates for summary in write_forecasts(store, cases, drawn, run)] == [
        CovariateUse(used=("age", "sex"), missing=()),
        CovariateUse(used=("sex",), missing=("age",)),
    ]
