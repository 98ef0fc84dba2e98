"""A balanced stage 2 inflates the odds of activity; sampling undoes that exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import load_bundle, save_bundle
from lesioncast.diffusion.continuous_batching import (
    ContinuousBatcher,
    ReverseProcess,
    run_until_idle,
)
from lesioncast.diffusion.objective import NET2, acceptance, redraw_seed
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig
from lesioncast.training.checkpoint import Checkpoint
from lesioncast.training.data.selection import training_cases
from lesioncast.training.experiment import Experiment, finetune_stage
from lesioncast.training.export import count_active, training_balance
from tests.bundle.test_bundle import CONFIG, METRICS, write_random_bundle
from tests.diffusion.test_model import case, tiny_model
from tests.support.forecast import SLAB, SPEC, write_store
from tests.support.known_denoisers import lesion_denoiser
from tests.support.training import MODEL, SETTINGS

SAMPLES = 4000
SAMPLER = SamplerConfig(solver="dpmsolver++", num_steps=4)


@pytest.mark.parametrize("odds_ratio", [0.25, 1.0, 1.9, 30.0])
@pytest.mark.parametrize("probability", [0.01, 0.34, 0.9])
def test_the_kept_samples_of_a_balanced_model_have_the_unbalanced_probability(
    probability: float, odds_ratio: float
) -> None:
    """By Bayes' rule on the balanced subset, then by the shares of samples that are kept."""
    odds = odds_ratio * probability / (1 - probability)
    balanced = odds / (1 + odds)
    active = balanced * acceptance(active=True, odds_ratio=odds_ratio)
    inactive = (1 - balanced) * acceptance(active=False, odds_ratio=odds_ratio)
    assert active / (active + inactive) == pytest.approx(probability)


def toy_batcher(odds_ratio: float, slots: int) -> ContinuousBatcher[None]:
    """Return a batcher of one voxel that is lesion with probability 1/2, before the correction."""
    process = ReverseProcess[None](
        lambda _: lesion_denoiser(0.5, 1),
        shape=(2, 1, 1, 1),
        schedule=ScheduleConfig(0, 0),
        sampler=SAMPLER,
        redraw_seed=lambda seed, x: redraw_seed(seed, x, odds_ratio=odds_ratio),
    )
    return ContinuousBatcher(process, slots=slots)


@pytest.mark.parametrize(("odds_ratio", "probability"), [(1.0, 0.5), (3.0, 0.25), (0.25, 0.8)])
def test_sampling_a_toy_with_known_truth_gives_the_unbalanced_probability(
    odds_ratio: float, probability: float
) -> None:
    """By symmetry every sampler draws the toy's lesion in half of its samples."""
    batcher = toy_batcher(odds_ratio, SAMPLES)
    x = run_until_idle(batcher, [None] * SAMPLES, range(7, 7 + SAMPLES))
    share = float((x[:, NET2] > 0).double().mean())
    error = np.sqrt(probability * (1 - probability) / SAMPLES)
    assert abs(share - probability) < 3 * error


def test_a_seed_names_a_mask_although_rejected_samples_are_drawn_again() -> None:
    seeds = list(range(100))
    together = run_until_idle(toy_batcher(3.0, 100), [None] * 100, seeds)
    few = run_until_idle(toy_batcher(3.0, 3), [None] * 100, seeds)
    assert torch.equal(together > 0, few > 0)
    kept = run_until_idle(toy_batcher(1.0, 100), [None] * 100, seeds)
    changed = (kept > 0) != (together > 0)
    assert 0 < int(changed[:, NET2].sum()) < 50


def test_a_model_draws_rejected_samples_again_and_keeps_the_others() -> None:
    """Every sample of the tiny model is active, so that a third is kept at the first draw."""
    model, seeds = tiny_model(), range(60)
    rows, arm = case(1)[0].expand(60, -1, -1, -1, -1), torch.zeros(60, dtype=torch.long)
    plain = model.sample_masks(rows, arm, seeds, SAMPLER)
    assert plain.flatten(1).any(1).all()
    model.odds_ratio = 3.0
    corrected = model.sample_masks(rows, arm, seeds, SAMPLER)
    same = (plain == corrected).flatten(1).all(1).double().mean()
    assert float(same) == pytest.approx(1 / 3, abs=0.18)


def test_a_bundle_keeps_its_ratio_and_its_card_states_it(tmp_path: Path) -> None:
    model, _ = write_random_bundle(tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle").model.odds_ratio == 1
    save_bundle(
        tmp_path / "balanced",
        replace(CONFIG, balanced_odds_ratio=1.93),
        unet=model.unet.state_dict(),
        control=model.control.state_dict(),
        metrics=METRICS,
    )
    assert load_bundle(tmp_path / "balanced").model.odds_ratio == 1.93
    assert "without that bias" not in (tmp_path / "bundle/README.md").read_text()
    card = (tmp_path / "balanced/README.md").read_text()
    assert "odds of\n  new lesions by 1.93" in card


@pytest.mark.parametrize(
    ("balanced", "lesion_loads", "ratio"),
    [(True, (), 1.25), (False, (), 1.0), (True, (1, 5), 1.0)],
)
def test_the_ratio_is_that_of_the_training_cases_where_stage_2_is_balanced(
    tmp_path: Path, balanced: bool, lesion_loads: tuple[int, ...], ratio: float
) -> None:
    """Four of nine training cases are active. Lesion loads have a prior fitted to all cases."""
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=2, train=9)
    unet = replace(
        MODEL.unet, slices=SLAB[0], arms=len(SPEC.arms), lesion_load_thresholds=lesion_loads
    )
    experiment = Experiment(
        replace(MODEL, arms=SPEC.arms, unet=unet),
        training_cases(store, SPEC.arms),
        tmp_path / "runs",
        seed=0,
    )
    settings = replace(SETTINGS, balanced=balanced)
    stage = finetune_stage(settings, experiment, Checkpoint(tmp_path / "unused", 1, {}, {}))
    balance = training_balance(stage, active=count_active(stage, store))
    assert (balance.active, balance.inactive, balance.balanced) == (4, 5, balanced)
    assert balance.odds_ratio == ratio
