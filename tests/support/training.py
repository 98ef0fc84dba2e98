"""A training run of seconds: small random cases, networks of a few thousand weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lesioncast.diffusion.controlnet import ControlConfig
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.unet import UNetConfig
from lesioncast.training.data.dataset import CaseDataset
from lesioncast.training.data.node_cache import Reader, fill, open_cases
from lesioncast.training.data.selection import CaseSelection
from lesioncast.training.experiment import Experiment
from lesioncast.training.settings import TrainSettings
from storage import pack_masks
from storage.layout import session_indices

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
    arm_dropout=0.2,
    condition_dropout=0.2,
    channel_dropout=0.2,
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
) -> CaseSelection:
    """A cache below `root`, filled for both stages, whose store does not exist."""
    rows = random_rows() if rows is None else rows
    cache = CaseSelection(
        Path("/no/store"), tuple(rows["case"].tolist()), name, (root,), SLAB, "inputs"
    )
    fill(cache, given(rows))
    fill(replace(cache, sessions=("w096",)), given(rows))
    return cache


def given(rows: dict[str, np.ndarray]) -> Reader:
    """Reads the rows as a store that holds them would be."""

    def read(cache: CaseSelection, columns: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        places = session_indices(cache.sessions)
        by_session = ("flair", "masks", "present")
        return [
            {name: rows[name][:, places] if name in by_session else rows[name] for name in columns}
        ]

    return read


def tiny_cases(
    root: Path,
    rows: dict[str, np.ndarray] | None = None,
    *,
    covariates: np.ndarray | None = None,
) -> CaseDataset:
    """The cases of a tiny cache."""
    cache = replace(tiny_cache(root, rows), covariates=covariates)
    return open_cases(cache, given({}))


def tiny_experiment(root: Path, cache: CaseSelection | None = None) -> Experiment:
    return Experiment(MODEL, cache or tiny_cache(root / "cache"), root / "runs", seed=7)
