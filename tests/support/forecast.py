"""A small store with outcomes, a small bundle, and a draw that replaces its networks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lesioncast.bundle.bundle import save_bundle, save_same_weights
from lesioncast.bundle.config import BundleConfig
from lesioncast.bundle.description import CASE_DIGITS, METRICS_FILE, describe_bundle
from lesioncast.bundle.json_files import read_json
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import CONDITION, ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.forecasting.sampling import ConditioningArrays
from lesioncast.imaging.covariates import Covariate
from storage import Store, StoreSettings, StoreSpec, open_store, pack_masks
from storage.nifti.io import read_volume
from storage.preprocess.grid import SlabGrid, to_slab
from storage.preprocess.lesions import LesionTransfer
from storage.preprocess.visits import Intervals
from storage.store.case_table import Case, ShardRow
from storage.store.shards import allocate_arrays
from storage.trial.dataset import SourceFile
from storage.trial.description import TrialDescription
from tests.support.bids import ARMS, Geometry, head, path_of, write_volume
from tests.support.store import SHARD, table_of, write_tiny_store

SLAB = (5, 16, 16)
GEOMETRY = Geometry(axes="LPS", tilt=9.0)
SETTINGS = StoreSettings(SLAB, GEOMETRY.spacing, resample=False)
SPEC = StoreSpec(arms=ARMS, slab=SLAB, spacing=GEOMETRY.spacing)
NET2_W048 = CONDITION.index("w048/net2")
UNET = UNetConfig(
    slices=SLAB[0], arms=3, widths=(8, 16), down_blocks=1, attention_stages=(), groups=4
)
RATE = np.array([0.8, 0.5, 0.1])  # P(active) by arm, of a patient who was active at w048


def write_store(
    path: Path,
    bids: Path,
    *,
    test: int = 6,
    train: int = 0,
    val: int = 0,
    simulated: bool = False,
) -> Store:
    """Write a store of test, then training, then validation cases, on a skewed LPS grid.

    Arms alternate; cases of odd index are active at w048 and w096.
    """
    splits = ["test"] * test + ["train"] * train + ["val"] * val
    arrays = allocate_arrays(len(splits), SPEC)
    table = []
    for index, split in enumerate(splits):
        flair = head(GEOMETRY.shape, seed=index)
        source = bids / _path(index)
        write_volume(source, flair, GEOMETRY)
        write_volume(bids / _path(index, "w000"), head(GEOMETRY.shape, seed=99), GEOMETRY)
        case = _case(index, _grid(source), split)
        slab = to_slab(flair.astype(np.float32), case.grid, order=1)
        arrays["flair"][index] = np.stack([slab / 450 - 1] * 3).astype(np.float16)
        arrays["masks"][index] = pack_masks(_masks(active=index % 2 == 1))
        arrays["present"][index] = case.present
        table.append(case)
    trial = TrialDescription("A made-up trial", simulated)
    write_tiny_store(path, table_of(SPEC, table, bids=str(bids), trial=trial), arrays)
    return open_store(path)


def _path(index: int, session: str = "w048") -> Path:
    return path_of(Path(), f"sub-{index + 1:02d}", session, "flair")


def _grid(path: Path) -> SlabGrid:
    """Return a crop from (2, 1, -1) of the file's canonical volume; one column is padded."""
    header = read_volume(SourceFile("sub", "w048", "flair", path)).header
    return SlabGrid(header, GEOMETRY.shape, SLAB, scale=(1.0, 1.0, 1.0), offset=(2.0, 1.0, -1.0))


def _case(index: int, grid: SlabGrid, split: str) -> Case:
    present = np.ones((3, 4), bool)
    present[0, 3] = False
    sources = {f"{session}/flair": _path(index, session).as_posix() for session in ("w000", "w048")}
    return Case(
        index=index,
        row=ShardRow(SHARD, index),
        subject=f"sub-{index + 1:02d}",
        arm=ARMS[index % len(ARMS)],
        arm_index=index % len(ARMS),
        trial=None,
        split=split,
        covariates={"age": 30 + 2 * index, "sex": "FM"[index % 2], "edss": None if index else 2.5},
        grid=grid,
        present=present,
        parcellation=False,
        intensity={},
        digests={path: f"{index:04d}{place:060d}" for place, path in enumerate(sources.values())},
        sources=sources,
        intervals=Intervals(310.0 + 5 * index, None),
        notes=(),
        fingerprints={},
        lesions={"w096/net2": LesionTransfer(source_count=1, grid_count=1)} if index % 2 else {},
    )


def _masks(*, active: bool) -> npt.NDArray[np.bool_]:
    masks = np.zeros((3, 3, *SLAB), bool)
    if active:
        masks[1, 2, 2, 4:6, 4:6] = True
        masks[2, 2, 2, 10:12, 3:5] = True
    return masks


def fake_draw(
    inputs: Sequence[ConditioningArrays], arm: npt.NDArray[np.int64], seeds: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Draw one lesion if the uniform number of the seed is below the arm's rate.

    The rate is that of `RATE` for patients active at w048, else 0.05. The number depends on the
    seed alone, so a sample that is active under an arm is active under all arms of higher rate.
    """
    masks = np.zeros((len(seeds), *SLAB), bool)
    for row, seed in enumerate(seeds):
        rate = RATE[arm[row]] if (inputs[row].condition[NET2_W048] > 0).any() else 0.05
        if np.random.default_rng(seed).random() < rate:
            masks[row, 2, 10:12, 3:5] = True
    return masks


def write_bundle(
    path: Path,
    *,
    settings: StoreSettings = SETTINGS,
    num_steps: int = 3,
    baseline_only: bool = False,
    simulated: bool = False,
    brain_mask_share: float = 0.0,
    covariates: tuple[Covariate, ...] = (),
    lesion_loads: tuple[int, ...] = (),
    flair_reader: bool = False,
    trained_on: Sequence[Case] = (),
    seed: int = 0,
) -> None:
    """Write a bundle of random weights whose samples depend on the condition."""
    torch.manual_seed(seed)
    shape = replace(UNET, lesion_load_thresholds=lesion_loads)
    condition = ControlConfig(flair_reader_spacing=settings.spacing if flair_reader else None)
    unet, control = UNet(shape), ControlNet(condition, shape, covariates)
    with torch.no_grad():
        for parameter in (*unet.parameters(), *control.parameters()):  # many are zero at first
            parameter.add_(0.02 * torch.randn_like(parameter))
    config = BundleConfig(
        ModelConfig(
            SPEC.arms,
            shape,
            condition,
            objective=ObjectiveConfig(lesion_weight=1.0),
            covariates=covariates,
        ),
        settings,
        SamplerConfig(num_steps=num_steps),
        simulated=simulated,
        brain_mask_share=brain_mask_share,
        baseline_only=baseline_only,
    )
    metrics = {
        "data": "8 training cases of a made-up trial.",
        "cases": [case.digest[:CASE_DIGITS] for case in trained_on],
        "seed": seed,
        "stages": {},
    }
    save_bundle(path, config, unet=unet.state_dict(), control=control.state_dict(), metrics=metrics)


def write_combined_bundle(path: Path, *bundles: Path) -> None:
    """Write a bundle with the members of all `bundles`, without a calibration."""
    parents = [describe_bundle(bundle) for bundle in bundles]
    metrics = [read_json(bundle / METRICS_FILE) for bundle in bundles]
    members = [member for record in metrics for member in record.get("members", [record])]
    save_same_weights(
        path,
        *parents,
        config=parents[0].config,
        metrics={**metrics[0], "members": members},
        calibration=None,
    )
