"""Training runs of seconds: small random cases and networks of a few thousand weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
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
    """Return random columns of a store: every third case is active, case 1 lacks w000/gad."""
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
    """Fill a cache below `root` for both stages. Its store does not exist."""
    rows = random_rows() if rows is None else rows
    selection = CaseSelection(
        Path("/no/store"), tuple(rows["case"].tolist()), name, (root,), SLAB, "inputs"
    )
    fill(selection, reader_of(rows))
    fill(replace(selection, sessions=("w096",)), reader_of(rows))
    return selection


def reader_of(rows: dict[str, np.ndarray]) -> Reader:
    """Return a reader that gives `rows` in place of a store."""

    def read(selection: CaseSelection, columns: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        sessions = session_indices(selection.sessions)
        by_session = ("flair", "masks", "present")
        return [
            {
                name: rows[name][:, sessions] if name in by_session else rows[name]
                for name in columns
            }
        ]

    return read


def tiny_cases(
    root: Path,
    rows: dict[str, np.ndarray] | None = None,
    *,
    covariates: np.ndarray | None = None,
) -> CaseDataset:
    """Return the cases of a tiny cache."""
    selection = replace(tiny_cache(root, rows), covariates=covariates)
    return open_cases(selection, reader_of({}))


def tiny_experiment(root: Path, cases: CaseSelection | None = None) -> Experiment:
    """Return an experiment on tiny networks; its runs and its cache lie below `root`."""
    return Experiment(MODEL, cases or tiny_cache(root / "cache"), root / "runs", seed=7)
