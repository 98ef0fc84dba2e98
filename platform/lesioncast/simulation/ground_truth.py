"""Read the true counterfactuals of a simulated trial: each patient's NET2 mask under every arm."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.nifti.io import read_volume
from storage.preprocess.grid import SlabGrid, to_slab
from storage.trial.dataset import SourceFile

TRUTH = Path("derivatives", "truth")
RANKS = "space-orig_desc-ranks_dseg"


def has_ground_truth(bids: Path) -> bool:
    """Return True if the BIDS folder is a simulated trial with known counterfactuals."""
    return (bids / TRUTH).is_dir()


def counterfactual_net2(
    bids: Path, subject: str, grid: SlabGrid, *, arms: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Return a subject's NET2 masks at w096 under each of `arms`, [arm, s, h, w].

    The masks are on the slab of `grid`. The trial stores one map of lesion ranks and a count for
    each arm; an arm's lesions are the ranks up to its count. Raises StorageError for a missing or
    damaged file and KeyError for an arm that was not simulated.
    """
    stem = f"{subject}_ses-w096_{RANKS}"
    folder = bids / TRUTH / subject / "ses-w096" / "anat"
    source = SourceFile(subject, "w096", "truth", folder / f"{stem}.nii.gz")
    ranks = to_slab(read_volume(source).data, grid, order=0)
    counts = json.loads((folder / f"{stem}.json").read_text())["LesionCounts"]
    return np.stack([(ranks > 0) & (ranks <= counts[arm]) for arm in arms])
