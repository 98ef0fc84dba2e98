"""A training run of seconds: small random cases, networks of a few thousand weights."""

from pathlib import Path

import numpy as np

from lesioncast.diffusion.controlnet import ControlConfig
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.unet import UNetConfig
from lesioncast.training.ingest import CaseCache, fill
from lesioncast.training.settings import TrainSettings
from lesioncast.training.stages import Experiment
from storage import pack_masks

ARMS = ("placebo", "avonex")
SLAB = (3, 8, 8)
CASES = 10
MODEL = ModelConfig(
    arms=ARMS,
    unet=UNetConfig(
        slices=3, arms=2, widths=(8, 16), down_blocks=1, attention_stages=(1,), head_dim=8, groups=4
    ),
    control=ControlConfig(hint_widths=(8,)),
)
SETTINGS = TrainSettings(
    steps=6,
    batch_size=4,
    learning_rate=1e-2,
    warmup=2,
    ema=0.9,
    arm_drop=0.2,
    condition_drop=0.2,
    channel_drop=0.2,
    workers=0,
    checkpoint_every=3,
    log_every=2,
)


def random_rows(cases: int = CASES, seed: int = 0) -> dict[str, np.ndarray]:
    """What a store would give: every third case active, case 1 without w000 gadolinium mask."""
    rng = np.random.default_rng(seed)
    masks = rng.random((cases, 3, 3, *SLAB)) < 0.1
    masks[:, 2, 2] &= (np.arange(cases) % 3 == 0)[:, None, None, None]
    present = np.ones((cases, 3, 4), bool)
    present[1, 0, 2] = False
    return {
        "case": np.arange(cases),
        "flair": rng.uniform(-1, 1, (cases, 3, *SLAB)).astype(np.float16),
        "masks": pack_masks(masks),
        "present": present,
        "arm": np.arange(cases) % 3 - 1,
    }


def tiny_cache(
    root: Path, rows: dict[str, np.ndarray] | None = None, name: str = "tiny"
) -> CaseCache:
    """A filled cache below `root`, whose store does not exist."""
    rows = random_rows() if rows is None else rows
    cache = CaseCache(Path("/no/store"), tuple(rows["case"].tolist()), name, root)
    fill(cache, lambda _: [rows])
    return cache


def tiny_experiment(root: Path, cache: CaseCache | None = None) -> Experiment:
    return Experiment(MODEL, cache or tiny_cache(root / "cache"), root / "runs", seed=7)
