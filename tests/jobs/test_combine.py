"""`lesioncast combine` makes one bundle of several that differ by their training seed."""

import json
from pathlib import Path

import pytest

from lesioncast.bundle.bundle import load_bundle, load_bundle_prior
from lesioncast.jobs.combine import main
from lesioncast.training.lesion_load_prior.bundle_calibration import calibrate_on_split
from storage import Store
from tests.support.forecast import write_bundle, write_store

SEEDS = (0, 1)
VALIDATION = 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store.zarr", tmp_path / "bids", test=0, train=4, val=VALIDATION)


@pytest.fixture
def bundles(tmp_path: Path, store: Store) -> list[Path]:
    trained_on = store.select(split="train")
    paths = [tmp_path / f"seed{seed}" for seed in SEEDS]
    for seed, path in zip(SEEDS, paths, strict=True):
        write_bundle(path, lesion_loads=(1, 4), trained_on=trained_on, seed=seed)
    return paths


def run(folder: Path, *bundles: Path, output: str = "both") -> int:
    paths = [*map(str, bundles), "--store", str(folder / "store.zarr")]
    return main([*paths, "--output", str(folder / output)])


def test_the_bundle_mixes_all_and_is_calibrated_for_the_mixture(
    tmp_path: Path, store: Store, bundles: list[Path]
) -> None:
    assert run(tmp_path, *bundles) == 0
    both = load_bundle(tmp_path / "both")
    assert both.member_count == len(SEEDS)
    assert both.config == load_bundle(bundles[0]).config
    assert both.calibration.cohort.name == f"{VALIDATION} validation cases of A made-up trial"
    assert both.calibration.parent is None
    priors = load_bundle_prior(tmp_path / "both").priors
    mixed, first = (
        calibrate_on_split(each, store, both.config.model, split="val")
        for each in (priors, priors[:1])
    )
    assert both.calibration == mixed
    assert mixed.patterns != first.patterns
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert [member["seed"] for member in metrics["members"]] == list(SEEDS)
    digests = [load_bundle_prior(path).digest for path in bundles]
    assert [member["bundle"] for member in metrics["members"]] == digests


def test_a_combined_bundle_takes_further_members(
    tmp_path: Path, store: Store, bundles: list[Path]
) -> None:
    third = tmp_path / "seed2"
    write_bundle(third, lesion_loads=(1, 4), trained_on=store.select(split="train"), seed=2)
    assert run(tmp_path, *bundles) == 0
    assert run(tmp_path, tmp_path / "both", third, output="three") == 0
    assert run(tmp_path, *bundles, third, output="same") == 0
    three, same = (load_bundle_prior(tmp_path / name) for name in ("three", "same"))
    assert three.member_count == 3
    assert three.digest == same.digest


def test_bundles_that_differ_by_more_than_the_seed_are_refused(
    tmp_path: Path,
    store: Store,
    bundles: list[Path],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = store.select(split="train")
    write_bundle(tmp_path / "longer", lesion_loads=(1, 4), trained_on=train, num_steps=9, seed=2)
    write_bundle(tmp_path / "fewer", lesion_loads=(1, 4), trained_on=train[:3], seed=2)
    for others, words in (
        (["longer"], f"expected the configuration.sampler.num_steps of {bundles[0]}, 3, got 9"),
        (["fewer"], f"expected the training cases of {bundles[0]}, "),
        (["seed0"], "expected bundles of different training seeds, got the same weights twice"),
    ):
        assert run(tmp_path, bundles[0], *(tmp_path / name for name in others)) == 1
        assert words in caplog.text
    assert run(tmp_path, bundles[0]) == 2
    assert "bundles: expected two or more" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()


def test_another_store_than_that_of_the_training_is_refused(
    tmp_path: Path, store: Store, bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    seen = [store.select(split="val")[0], *store.select(split="train")]
    for seed in SEEDS:
        write_bundle(tmp_path / f"on{seed}", lesion_loads=(1, 4), trained_on=seen, seed=seed)
    assert run(tmp_path, *(tmp_path / f"on{seed}" for seed in SEEDS)) == 1
    assert "got one that was trained on 1 of them" in caplog.text
    write_store(tmp_path / "other.zarr", tmp_path / "other", test=2)
    (tmp_path / "store.zarr").rename(tmp_path / "first.zarr")
    (tmp_path / "other.zarr").rename(tmp_path / "store.zarr")
    assert run(tmp_path, *bundles) == 1
    assert "expected the 4 cases that" in caplog.text
    assert "give the store of the training" in caplog.text
