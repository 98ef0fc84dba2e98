"""The studies' tables and figures on data whose answers are known."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import load_bundle
from lesioncast.config import Config, load_config
from lesioncast.evaluation.reporting.files import CASES
from lesioncast.simulation.disease import count_cdf, draw_patient
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.training.progress import METRICS
from lesioncast.training.settings import TrainSettings
from tests.benchmarks.data.intensity_ranges import COMMON, OWN, SessionPair, differences
from tests.benchmarks.studies import ablation_tables, ablations, bayes_optimal, image_information
from tests.benchmarks.studies.covariates import arm_index
from tests.support.forecast import SLAB, write_bundle, write_store

ROOT = Path(__file__).resolve().parents[2]
METHOD, RESULTS = (ROOT / "platform" / name for name in ("METHOD.md", "RESULTS.md"))
CONFIGS = ROOT / "jobs" / "configs"
LAST = "covariate"  # none of the presets has covariates
LESIONS = (0, 0, 3, 1)
HEADER = (
    "participant_id,lesions,p_active_sampled,lesions_sampled,p_active_regression,lesions_regression"
)


def write_run(
    folder: Path, *, chance: tuple[float, ...], nats: float, losses: tuple[int, ...]
) -> Path:
    """Write a run of four cases whose counts are right."""
    folder.mkdir()
    lines = [
        f"sub-{row},{true},{p},{true},{p},0"
        for row, (true, p) in enumerate(zip(LESIONS, chance, strict=True))
    ]
    (folder / CASES).write_text("\n".join([HEADER, *lines]) + "\n")
    own = np.full((2, 4), nats)
    np.savez(folder / ablation_tables.NATS_FILE, own=own, none=own + 0.5)
    run = folder / "runs" / "finetune"
    run.mkdir(parents=True)
    reports = [{"step": 25 * (at + 1), "loss": loss / 1000} for at, loss in enumerate(losses)]
    (run / METRICS).write_text("".join(json.dumps(report) + "\n" for report in reports))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, list[Path]]:
    """Return a recipe that ranks all pairs right and a variant that ranks half of them wrong."""
    return {
        "recipe": [
            write_run(tmp_path / f"a{seed}", chance=(0.1, 0.2, 0.8, 0.7), nats=2.0, losses=(9, 7))
            for seed in range(2)
        ],
        "worse": [
            write_run(
                tmp_path / f"b{seed}", chance=(0.1, 0.9, 0.8, 0.7), nats=3.0, losses=(10, 8, 6)
            )
            for seed in range(2)
        ],
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_values_and_paired_differences_are_those_of_the_runs(
    folders: dict[str, list[Path]],
) -> None:
    _, _, recipe, worse, regression = map(cells, ablation_tables.table(folders))
    assert recipe[2:4] == ["1.000 (1.000 to 1.000)", ""]
    assert worse[2] == "0.500 (0.500 to 0.500)"
    assert worse[3].startswith("-0.500 (-1.000 to ")
    assert worse[4:7] == ["0.000 (0.000 to 0.000)", "+0.000 (+0.000 to +0.000)",
                          "1.00 (1.00 to 1.00)"]  # fmt: skip
    assert worse[7:] == [
        "3.00 (3.00 to 3.00)", "+1.000 (+1.000 to +1.000)", "0.50 (0.50 to 0.50)",
    ]  # fmt: skip
    assert regression[2] == "1.000"
    assert regression[4] == f"{(np.log(4) ** 2 + np.log(2) ** 2) / 4:.3f}"
    assert regression[6] == "0.00 (observed 1.00)"


def test_curves_hold_the_steps_that_every_run_reported(folders: dict[str, list[Path]]) -> None:
    head, _, recipe, worse = map(cells, ablation_tables.curves(folders))
    assert head[1:] == ["25", "50"]
    assert recipe[1:] == ["9.00", "7.00"]
    assert worse[1:] == ["10.00", "8.00"]


def test_seeds_that_disagree_widen_the_interval(tmp_path: Path) -> None:
    """All cases of a run agree, so the interval is that of the seeds alone."""
    recipe, variant = (
        [
            write_run(
                tmp_path / f"{name}{seed}", chance=(0.1, 0.2, 0.8, 0.7), nats=nats, losses=(1,)
            )
            for seed, nats in enumerate(nats_by_seed)
        ]
        for name, nats_by_seed in (("a", (2.0, 2.0)), ("b", (2.0, 4.0)))
    )
    assert (
        ablation_tables.difference(variant, recipe, ablation_tables.mean_nats)
        == "+1.000 (+0.000 to +2.000)"
    )


@pytest.mark.parametrize(("knowledge", "expected"), [(0.0, np.prod(SLAB) * np.log(2)), (1.0, 0.0)])
def test_nats_are_those_of_the_voxels_together(knowledge: float, expected: float) -> None:
    """Of a model that knows nothing, P = 0.5 everywhere, and of one that knows all."""
    x = torch.full((2, 2, *SLAB), -1.0)
    x[:, 1, 2, 3:5] = 1.0

    def denoiser(*_: object, **__: object) -> object:
        return lambda *_: knowledge * x

    model = SimpleNamespace(
        config=SimpleNamespace(unet=SimpleNamespace(lesion_load_thresholds=())), denoiser=denoiser
    )
    likelihoods = image_information.negative_log_likelihood(
        model, x, torch.zeros(2), torch.zeros(2, 7, *SLAB), None
    )
    assert likelihoods.shape == (2, len(image_information.LOGSNR))
    assert likelihoods == pytest.approx(np.full_like(likelihoods, expected), rel=1e-5)


def test_nats_are_asked_of_the_cases_with_lesions_with_and_without_their_images(
    tmp_path: Path,
) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids")
    write_bundle(tmp_path / "bundle")
    own, none = image_information.nats(store, load_bundle(tmp_path / "bundle"), store.cases)
    assert (
        own.shape == none.shape == (3, len(image_information.LOGSNR))
    )  # every second case is active
    assert np.isfinite(own).all()
    assert not np.array_equal(own, none)


def test_lesions_beside_older_ones_save_nats_and_without_older_ones_nothing_does() -> None:
    rng = np.random.default_rng(0)

    def outcome(*, beside: bool) -> tuple[np.ndarray, np.ndarray]:
        new, old = np.zeros((2, 3, 16, 16), bool)
        at, other = rng.integers(2, 14, (2, 2))
        new[1, at[0], at[1]] = True
        old[1, (at + 1 if beside else other)[0], (at if beside else other)[1]] = True
        return new, old

    def saved(cases: list[tuple[np.ndarray, np.ndarray]]) -> float:
        spacing = (3.0, 1.5, 1.5)
        learned = image_information.estimate_locations(cases[:200], spacing)
        return float(image_information.distance_gain(learned, cases[200:], spacing).mean())

    near, anywhere = ([outcome(beside=each) for _ in range(400)] for each in (True, False))
    assert saved(near) > 2
    assert abs(saved(anywhere)) < 0.1
    assert saved([(new, np.zeros_like(old)) for new, old in near]) == pytest.approx(0, abs=1e-9)


def test_the_exact_forecast_is_right_on_average_and_nearer_than_the_arms_law() -> None:
    settings = SimulationSettings(subjects=600, seed=5)
    patients = [draw_patient(settings, index) for index in range(600)]
    law = np.stack([bayes_optimal.posterior(each, settings.predictability) for each in patients])
    arm = [np.diff(count_cdf(each.arm, 1), prepend=0.0) for each in patients]
    true = np.array([each.counts[1, arm_index(each)] for each in patients])
    np.testing.assert_allclose(law.sum(1), 1)
    assert law.min() >= 0
    for value in (bayes_optimal.COUNTS > 0, np.log1p(bayes_optimal.COUNTS)):
        mean = law @ value
        error = np.sqrt((law @ value**2 - mean**2).sum())
        assert abs((value[true] - mean).sum()) < 4 * error
    surprise, of_arm = (
        -np.log([p[n] for p, n in zip(each, true, strict=True)]).mean() for each in (law, arm)
    )
    assert surprise < of_arm - 0.2


def test_a_gain_says_how_many_patients_it_takes_to_see_it() -> None:
    """One AUC is 1, the other that of chance; each resample says so."""
    true = np.tile([0.0, 2.0], 200)
    good = bayes_optimal.Forecast((true > 0) * 0.8 + 0.1, true)
    poor = bayes_optimal.Forecast(np.full(400, 0.5), np.zeros(400))
    rows = list(bayes_optimal.gains({"poor": poor, "exact": good}, true, np.ones((3, 400))))
    assert rows[0].startswith("| exact minus | AUC | patients | average precision")
    assert rows[2].startswith("| poor | +0.5000 (+0.5000 to +0.5000) | 0 |")
    assert (
        list(bayes_optimal.scores({"exact": good}, true))[2]
        == "| exact | 1.000 | 1.000 | 0.010 | 0.000 |"
    )


def test_every_variant_that_the_documents_name_exists() -> None:
    text = METHOD.read_text() + RESULTS.read_text()
    in_commands = [
        name for line in re.findall(r'--variants "(.*)"', text) for name in line.split(",")
    ]
    causes = text.split("| cause | remedy in `demo` and `small` | variant |")[1].split("\n\n")[0]
    in_table = [line.split("|")[-2].strip() for line in causes.splitlines()[2:]]
    assert len(in_commands) > 3
    assert len([name for name in in_table if name]) > 3
    assert {*in_commands, *in_table} - {""} <= ablations.VARIANTS.keys()


def test_the_table_of_presets_holds_the_values_of_the_configurations() -> None:
    table = METHOD.read_text().split("## Presets")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    presets = {row[0]: row[1:] for row in rows}
    configs = [load_config(CONFIGS / f"{config.strip('`')}.yaml") for config in rows[0][1:]]
    assert presets["widths"] == [" ".join(map(str, config.unet.widths)) for config in configs]
    assert presets["folded patch"] == [str(config.unet.patch) for config in configs]
    assert presets["guidance"] == [f"{config.sampler.guidance:g}" for config in configs]
    for cell, config in zip(presets["sampler"], configs, strict=True):
        assert f" {config.sampler.num_steps}" in cell
    for cell, config in zip(presets["slab (s, h, w)"], configs, strict=True):
        assert cell.startswith(" x ".join(map(str, config.store.slab)) + ",")
    assert presets["weight of a lesion voxel"] == [
        f"{config.objective.lesion_weight:g}" for config in configs
    ]
    stages = "stage 2 loses arm, images, one channel, w048"
    assert presets[stages] == [
        ", ".join(
            f"{rate:g}"
            for name, rate in asdict(config.finetune.dropout_rates).items()
            if name != LAST
        )
        for config in configs
    ]
    assert presets["stage 2 balanced"] == [
        "yes" if config.finetune.balanced else "no" for config in configs
    ]
    assert presets["weight of FLAIR in stage 1, stage 2"] == [
        f"{flair_weight(config, config.pretrain):g}, {flair_weight(config, config.finetune):g}"
        for config in configs
    ]


def flair_weight(config: Config, stage: TrainSettings) -> float:
    """Return the weight of FLAIR in a stage's loss."""
    return config.objective.flair_weight if stage.flair_weight is None else stage.flair_weight


def test_ranges_of_their_own_undo_a_gain_and_one_range_does_not() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(100, 500, (4, 20, 20)).astype(np.float32)
    tissue, lesions = np.ones(image.shape, bool), np.zeros(image.shape, bool)
    pair = SessionPair((image, image), (tissue, tissue), lesions)
    same, brighter = differences(pair), differences(pair, gain=1.2)
    assert same[OWN] == same[COMMON]
    assert (brighter[OWN].mean, brighter[OWN].sd) == pytest.approx((0, 0), abs=1e-5)
    assert brighter[COMMON].mean > 0.2
