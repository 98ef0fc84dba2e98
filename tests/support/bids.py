"""Write a tiny BIDS trial: blocky heads in any orientation, on sheared affines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from storage.nifti.affine import as_matrix
from storage.nifti.io import NiftiGeometry, Volume
from storage.preprocess.grid import SlabGrid
from storage.preprocess.visits import Intervals
from storage.store.case_table import Case, ShardRow

Array = npt.NDArray[Any]

ARMS = ("placebo", "avonex", "ocrelizumab")
SESSIONS = ("w000", "w048", "w096")
_FOLDER_AND_SUFFIX = {
    "flair": ("", "FLAIR"),
    "t2": ("derivatives/lesions", "space-orig_label-L_desc-T2_mask"),
    "gad": ("derivatives/lesions", "space-orig_label-L_desc-Gad_mask"),
    "net2": ("derivatives/lesions", "space-orig_label-L_desc-NET2_mask"),
    "parcellation": ("derivatives/synthseg", "space-orig_desc-synthseg_dseg"),
    "brain_mask": ("derivatives/brainmask", "space-orig_desc-brain_mask"),
}


@dataclass(frozen=True)
class Geometry:
    """Geometry of a file: canonical shape and spacing (s, h, w), axis codes, tilt in degrees."""

    shape: tuple[int, int, int] = (9, 18, 14)
    spacing: tuple[float, float, float] = (3.0, 2.0, 2.0)
    axes: str = "LPS"
    tilt: float = 7.0

    @property
    def affine(self) -> Array:
        """Return the affine from (w, h, s) to RAS+ mm, rotated about all axes and sheared."""
        turn = np.eye(3)
        for axis in range(3):
            angle = np.deg2rad(self.tilt * (1 + axis / 4))
            i, j = (other for other in range(3) if other != axis)
            step = np.eye(3)
            step[[i, i, j, j], [i, j, i, j]] = (
                np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle),
            )  # fmt: skip
            turn = turn @ step
        affine = np.eye(4)
        affine[:3, :3] = turn * self.spacing[::-1]
        affine[0, 1] += 0.005 * bool(self.tilt)
        affine[:3, 3] = (-11.5, 20.25, -40.0)
        return affine


def path_of(root: Path, name: str, session: str, channel: str) -> Path:
    """Return the path of an input of the subject `name` (`sub-01`)."""
    folder, suffix = _FOLDER_AND_SUFFIX[channel]
    return root / folder / name / f"ses-{session}/anat" / f"{name}_ses-{session}_{suffix}.nii.gz"


def write_volume(path: Path, canonical: Array, geometry: Geometry) -> None:
    """Write a canonical volume (s, h, w) as a file with the axes `geometry.axes`."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(geometry.axes))
    data = canonical.transpose(2, 1, 0)
    image = nib.Nifti1Image(
        np.ascontiguousarray(apply_orientation(data, turn)),
        geometry.affine @ inv_ornt_aff(turn, data.shape),
    )
    image.set_sform(image.affine, 2)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def head(shape: tuple[int, int, int], seed: int) -> Array:
    """Return a FLAIR (s, h, w), int16: texture in an ellipsoid off the centre, zero around it."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside = (axes[0] / 0.95) ** 2 + ((axes[1] - 0.1) / 0.8) ** 2 + (axes[2] / 0.7) ** 2 < 1
    return np.where(inside, rng.integers(200, 900, shape), 0).astype(np.int16)


def volumes(geometry: Geometry, seed: int) -> dict[tuple[str, str], Array]:
    """Return every input of one subject, canonical (s, h, w), by session and channel."""
    rng = np.random.default_rng(seed)
    shape = geometry.shape
    inputs: dict[tuple[str, str], Array] = {}
    for k, session in enumerate(SESSIONS):
        inputs[session, "flair"] = head(shape, 10 * seed + k)
        for channel in ("t2", "gad", "net2"):
            if (session, channel) != ("w000", "net2"):
                inputs[session, channel] = (rng.random(shape) < 0.1).astype(np.uint8)
    labels = rng.choice(np.array([2, 3, 41, 42, 1007, 2035], np.int16), shape)
    inputs["w048", "parcellation"] = np.where(inputs["w048", "flair"] > 0, labels, 0).astype(
        np.int16
    )
    return inputs


def write_subject(
    root: Path, name: str, *, geometry: Geometry, seed: int
) -> dict[tuple[str, str], Array]:
    """Write one subject's files and return their voxels."""
    inputs = volumes(geometry, seed)
    for (session, channel), volume in inputs.items():
        write_volume(path_of(root, name, session, channel), volume, geometry)
    return inputs


def write_trial(
    root: Path, subjects: int, *, geometry: Geometry | None = None
) -> dict[str, dict[tuple[str, str], Array]]:
    """Write `sub-01`, `sub-02`, ... with arms in turn, and return each subject's volumes."""
    names = [f"sub-{number:02d}" for number in range(1, subjects + 1)]
    write_participants(root, {name: ARMS[i % len(ARMS)] for i, name in enumerate(names)})
    geometry = geometry or Geometry()
    return {
        name: write_subject(root, name, geometry=geometry, seed=seed)
        for seed, name in enumerate(names)
    }


def write_participants(root: Path, arms: Mapping[str, str]) -> None:
    """Write participants.tsv with those arms and a few covariates."""
    rows = [
        f"{name}\t{30 + i}\tF\tn/a\t{arm}\tOPERA\n" for i, (name, arm) in enumerate(arms.items())
    ]
    root.mkdir(parents=True, exist_ok=True)
    table = "participant_id\tage\tsex\tedss\ttreatment_arm\ttrial\n" + "".join(rows)
    (root / "participants.tsv").write_text(table)


def alter(path: Path, change: Callable[[Array], Array]) -> None:
    """Rewrite a file with changed voxels (i, j, k) and the same affine."""
    image = nib.load(path)
    data = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(data, image.affine), path)


def volume_of(canonical: Array, geometry: Geometry) -> Volume:
    """Return a canonical volume (s, h, w) as if read from a file with RAS axes."""
    s, h, w = canonical.shape
    affine = geometry.affine
    header = NiftiGeometry((w, h, s), as_matrix(affine), 1, 0, None, "mm")
    return Volume(canonical, affine, header, "digest")


def case_of(grid: SlabGrid, *, index: int = 0, subject: str = "sub-01") -> Case:
    """Return a case on that grid with all inputs present."""
    return Case(
        index=index,
        row=ShardRow("shard", index),
        subject=subject,
        arm=ARMS[0],
        arm_index=0,
        trial=None,
        split="train",
        covariates={"age": 31, "sex": "F", "edss": None},
        grid=grid,
        present=np.ones((3, 4), bool),
        parcellation=True,
        intensity=dict.fromkeys(SESSIONS, (0.0, 900.0)),
        digests={"flair.nii.gz": f"{index:064d}"},
        sources={"w048/flair": "flair.nii.gz"},
        intervals=Intervals(),
        notes=(),
        fingerprints={},
        lesions={},
    )
