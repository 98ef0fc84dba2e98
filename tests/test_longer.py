"""The bundle that is kept with the repository: what it is, and that the demo can use it."""

import json

import pytest

from jobs.demo import LONGER
from lesioncast.config import load_config
from lesioncast.forecasting.engine import bundle_steps
from lesioncast.training.bundle import METRICS_FILE, load_bundle

CONFIGS = LONGER.parent / "configs"
DEMO, OWN = CONFIGS / "demo.yaml", CONFIGS / "longer.yaml"
LIMIT = 20e6  # bytes


def test_the_kept_bundle_is_whole_and_small() -> None:
    assert len(load_bundle(LONGER).digest) == 64
    assert sum(path.stat().st_size for path in LONGER.iterdir()) < LIMIT


def test_the_kept_bundle_is_what_its_configuration_makes() -> None:
    bundle, config = load_bundle(LONGER), load_config(OWN)
    assert bundle.config == config.model
    assert bundle.sampler == config.sampler
    made = json.loads((LONGER / METRICS_FILE).read_text())
    assert bundle_steps(LONGER) == (
        f"{config.pretrain.steps} + {config.finetune.steps} steps, seed {config.seed}"
    )
    for stage, settings in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        recorded = made["stages"][stage]["settings"]
        for name in ("steps", "learning_rate", "warmup", "ema", "batch_size", "arm_drop"):
            assert recorded[name] == getattr(settings, name), f"{stage}.{name}"


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_log_beside_it_runs_to_the_last_step(stage: str) -> None:
    lines = (LONGER / f"{stage}.jsonl").read_text().splitlines()
    made = json.loads((LONGER / METRICS_FILE).read_text())["stages"][stage]
    assert json.loads(lines[-1])["step"] == made["step"]
    assert json.loads(lines[-1])["loss"] == made["loss"]


def test_the_demo_forecasts_subjects_that_are_new_to_it() -> None:
    """The same slabs and arms, other subjects."""
    bundle, demo, own = load_bundle(LONGER), load_config(DEMO), load_config(OWN)
    assert (bundle.slab, bundle.spacing) == (demo.store.slab, demo.store.spacing)
    assert bundle.config.arms == demo.arms
    assert own.cohort.seed != demo.cohort.seed
