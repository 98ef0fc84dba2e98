"""The guidance is chosen on validation cases by the CRPS of the count, and recorded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.description import METRICS_FILE
from lesioncast.bundle.json_files import read_json
from lesioncast.errors import ForecastError
from lesioncast.evaluation.guidance import (
    GuidanceTrial,
    choice_of,
    choose_guidance,
    guidance_lines,
    record_guidance,
)
from lesioncast.evaluation.settings import EvaluationSettings
from tests.support.forecast import write_bundle, write_store

SETTINGS = EvaluationSettings(samples=3, workers=1, batch_size=4)


def test_the_scale_that_samples_the_law_of_the_outcome_is_chosen() -> None:
    """Of samples from the law itself, from half and twice its rate, and of another case."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 3.0, 800)
    true = rng.poisson(rate).astype(float)
    sampled = {
        scale: rng.poisson(factor * rate[:, None], (800, 8)).astype(float)
        for scale, factor in ((1.0, 0.5), (1.5, 1.0), (2.0, 2.0))
    }
    sampled[3.0] = rng.permutation(sampled[1.5])
    choice = choice_of(true, sampled, seed=0, opening=False)
    assert choice.chosen == 1.5
    by_scale = {one.guidance: one for one in choice.scores}
    assert by_scale[1.5].crps_error == 0
    for scale in (1.0, 2.0, 3.0):
        gap = by_scale[scale].crps - by_scale[1.5].crps
        assert gap > 3 * by_scale[scale].crps_error
    assert by_scale[2.0].mean_count == pytest.approx(2 * true.mean(), rel=0.1)
    assert (choice.cases, choice.samples) == (800, 8)
    assert [line.endswith(", chosen") for line in guidance_lines(choice)] == [0, 1, 0, 0]


def test_an_oracle_scores_zero_and_the_smaller_scale_wins_a_tie() -> None:
    true = np.array([0.0, 2.0, 5.0])
    exact = np.tile(true[:, None], 4)
    choice = choice_of(true, {2.0: exact, 1.5: exact, 1.0: exact + 1}, seed=0, opening=False)
    assert choice.chosen == 1.5
    first, second, third = choice.scores
    assert (first.crps, second.crps, third.crps) == (1, 0, 0)
    assert (second.brier, second.log_count_mse) == (0, 0)


@pytest.mark.ray
def test_the_chosen_scale_and_its_table_are_recorded_in_the_bundle(
    ray_cluster: None, tmp_path: Path
) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=4)
    write_bundle(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    trial = GuidanceTrial(tuple(store.cases[:4]), SETTINGS, seed=0, opening=False)
    choice = choose_guidance(store, bundle, trial, (1.0, 4.5))
    assert [one.guidance for one in choice.scores] == [1.0, 4.5]
    assert (choice.cases, choice.samples, choice.observed_share) == (4, 3, 0.5)
    assert choice.scores[0] != replace(choice.scores[1], guidance=1.0)
    digest = record_guidance(bundle, replace(choice, chosen=4.5))
    changed = load_bundle(tmp_path / "bundle")
    assert changed.digest == digest != bundle.digest
    assert changed.config == replace(
        bundle.config, sampler=replace(bundle.config.sampler, guidance=4.5)
    )
    recorded = read_json(tmp_path / "bundle" / METRICS_FILE)["guidance"]
    assert recorded["chosen"] == 4.5
    assert [row["guidance"] for row in recorded["scores"]] == [1.0, 4.5]
    before, after = bundle.model.control.state_dict(), changed.model.control.state_dict()
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_no_scale_is_chosen_without_validation_cases(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=4)
    write_bundle(tmp_path / "bundle")
    with pytest.raises(ForecastError, match="expected validation cases to choose the guidance by"):
        choose_guidance(
            store, load_bundle(tmp_path / "bundle"), GuidanceTrial((), SETTINGS, 0, opening=False)
        )
