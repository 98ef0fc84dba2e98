"""What a simulated patient's lesions would have been under every arm, read back from the trial."""

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
    """Whether the BIDS folder is a simulated trial, whose futures are all known."""
    return (bids / TRUTH).is_dir()


def counterfactual_net2(
    bids: Path, subject: str, grid: SlabGrid, *, arms: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """A subject's NET2 at w096 under each of `arms`, in the slab of its `grid`: [arm, s, h, w].

    Lesions are ranked, and an arm's are those of the first ranks, as many as it lets arise.
    Raises StorageError where a file is missing or broken, KeyError for an arm not simulated.
    """
    stem = f"{subject}_ses-w096_{RANKS}"
    folder = bids / TRUTH / subject / "ses-w096" / "anat"
    source = SourceFile(subject, "w096", "truth", folder / f"{stem}.nii.gz")
    ranks = to_slab(read_volume(source).data, grid, order=0)
    counts = json.loads((folder / f"{stem}.json").read_text())["LesionCounts"]
    return np.stack([(ranks > 0) & (ranks <= counts[arm]) for arm in arms])
