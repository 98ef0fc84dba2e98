"""Measure how often a patient is called untypical: fresh ones, spoilt ones, and real ones.

    PYTHONPATH=.:platform python tests/benchmarks/typicality/spoilt_patients.py \
        out/demo/store.zarr --config jobs/configs/demo.yaml --real BIDS

The reference is that of a bundle: fitted to the training cases of the store. Fresh patients are
simulated with another seed, by the settings of the configuration. Spoilt are the first of them, one
fault at a time; each is converted anew, as an upload would be. Sessions are swapped in patients who
have new lesions between them: in all others both sessions have the same law, and nothing can tell.
Real patients, if any, are read with and without their brain masks.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lesioncast.arrays import Float32s, Floats
from lesioncast.config import Config, load_config
from lesioncast.imaging.features.patient_features import (
    BEFORE_TREATMENT,
    FEATURE_GROUPS,
    PATIENT_FEATURES,
    in_words,
)
from lesioncast.imaging.typicality import Typicality, TypicalityReference, judge
from lesioncast.simulation.bids import grid_affine, nifti_bytes
from lesioncast.simulation.flair import ScannerContrast
from lesioncast.simulation.subject import SimulatedSubject, simulate_subject
from lesioncast.training.data.typicality import case_features, fit_typicality
from storage import Store, open_store, parse_location
from storage.convert.patient import convert_patient, patient_image_path, write_patient_table
from storage.layout import BASELINE, CURRENT
from storage.settings import StoreSettings
from tests.benchmarks.studies.trials import study_seed

SUBJECT = "sub-study"
LIMIT = 0.01
# Contrasts of scanners that no trial of the simulation has. The last two differ in one property by
# less than twice the range of the trials: sites of the trials, which vary, come near them.
NEW_SCANNERS = {
    "new scanner: grey 1.40, fluid 0.42": ScannerContrast(1.40, 0.42, 0.035, 500.0),
    "nearer scanner: fluid 0.42": ScannerContrast(1.20, 0.42, 0.035, 500.0),
    "nearer scanner: noise 0.07": ScannerContrast(1.20, 0.24, 0.07, 500.0),
}
WRONG_SPACING = (0.8, 1.25)


@dataclass(frozen=True)
class Upload:
    """What is uploaded of a patient: raw images [s, h, w] by name, such as w000/flair."""

    images: Mapping[str, npt.NDArray[Any]]
    #: From voxels (w, h, s) to mm.
    affine: Floats


Spoil = Callable[[Upload, int], Upload]
"""Spoils the upload of the patient with an index."""


def upload_of(subject: SimulatedSubject, affine: Floats) -> Upload:
    """Return the images of a simulated patient that a forecast may read."""
    images: dict[str, npt.NDArray[Any]] = {
        "w048/parcellation": subject.parcellation,
        "w048/net2": subject.net2("w048"),
    }
    for row, session in enumerate((BASELINE, CURRENT)):
        images |= {
            f"{session}/flair": np.rint(subject.flair[row]),
            f"{session}/t2": subject.t2[row],
            f"{session}/gad": subject.gad[row],
        }
    return Upload(images, affine)


def wrong_spacing(upload: Upload, index: int) -> Upload:
    """Let the headers state voxels that are 20 % too small or 25 % too large in plane."""
    factor = WRONG_SPACING[index % len(WRONG_SPACING)]
    return Upload(upload.images, upload.affine @ np.diag([factor, factor, 1.0, 1.0]))


def ring_of_scalp(upload: Upload, index: int) -> Upload:
    """Add a bright ring of one voxel behind a dark one, as skull stripping that failed leaves."""
    rng = np.random.default_rng(index)

    def with_ring(image: Float32s) -> Float32s:
        brain = image > 0
        plane = np.zeros((3, 3, 3), bool)
        plane[1] = True
        inner, outer = (ndimage.binary_dilation(brain, plane, steps) for steps in (1, 2))
        white = float(np.median(image[brain]))
        ring = outer & ~inner
        spoilt = image.copy()
        spoilt[inner & ~brain] = 0.1 * white
        spoilt[ring] = white * rng.uniform(0.8, 1.4, int(ring.sum()))
        return np.rint(spoilt)

    return _map_flair(upload, with_ring)


def swapped_sessions(upload: Upload, index: int) -> Upload:
    """Exchange all images of the two sessions; NET2 has one session and stays."""
    other = {BASELINE: CURRENT, CURRENT: BASELINE}
    swapped = {}
    for name, image in upload.images.items():
        session, channel = name.split("/")
        exchanged = channel in ("flair", "t2", "gad")
        swapped[f"{other[session]}/{channel}" if exchanged else name] = image
    return Upload(swapped, upload.affine)


def inverted_contrast(upload: Upload, index: int) -> Upload:
    """Show bright tissue dark and dark tissue bright, as in an image of another sequence."""

    def inverted(image: Float32s) -> Float32s:
        return np.where(image > 0, image.max() + 1 - image, 0)

    return _map_flair(upload, inverted)


def _map_flair(upload: Upload, change: Callable[[Float32s], Float32s]) -> Upload:
    images = {
        name: change(image) if name.endswith("/flair") else image
        for name, image in upload.images.items()
    }
    return Upload(images, upload.affine)


SPOILT: dict[str, Spoil] = {
    "wrong spacing": wrong_spacing,
    "ring of scalp": ring_of_scalp,
    "swapped sessions": swapped_sessions,
    "inverted contrast": inverted_contrast,
}


@dataclass(frozen=True)
class Judge:
    """Converts uploads as the store of the reference was converted, and judges them."""

    settings: StoreSettings
    arms: tuple[str, ...]
    reference: TypicalityReference

    def of_upload(self, upload: Upload) -> Typicality:
        """Convert an upload and judge it."""
        layout = self.settings.layout
        with TemporaryDirectory() as folder:
            bids = Path(folder) / "bids"
            write_patient_table(bids, SUBJECT, {}, layout=layout)
            for name, image in upload.images.items():
                path = bids / patient_image_path(name, SUBJECT, layout)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(nifti_bytes(image.astype(np.int16), upload.affine))
            return self.of_folder(bids, Path(folder) / "store.zarr")

    def of_folder(self, bids: Path, out: Path) -> Typicality:
        """Convert a BIDS folder of one patient and judge it."""
        store = convert_patient(bids, out, settings=self.settings, arms=self.arms)
        features = case_features(store, store.cases[0])
        return judge(
            self.reference, features, groups=FEATURE_GROUPS, before_treatment=BEFORE_TREATMENT
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the reference and print the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=parse_location)
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--seed", type=study_seed, default=3101)
    parser.add_argument("--fresh", type=int, default=1000)
    parser.add_argument("--spoilt", type=int, default=200, help="patients of each fault")
    parser.add_argument("--real", type=Path, help="BIDS folder of real patients")
    args = parser.parse_args(argv)
    config = load_config(args.config, [f"simulation.seed={args.seed}"])
    store = open_store(args.store)
    judging = build_judge(store)
    print(f"{len(judging.reference.ranked)} ranked patients; seed {args.seed}\n", flush=True)
    if args.real is not None:
        report_real(judging, args.real, store)
    print("| patients | number | p < 0.01 | median p |\n|---|---|---|---|")
    spoilt = range(args.spoilt)
    for name, spoil in SPOILT.items():
        report(name, (judging.of_upload(spoil(one, i)) for i, one in faulty(name, config, spoilt)))
    for name, contrast in NEW_SCANNERS.items():
        report(name, (judging.of_upload(one) for _, one in simulated(config, spoilt, contrast)))
    fresh = range(args.fresh)
    report("fresh", (judging.of_upload(one) for _, one in simulated(config, fresh)))
    return 0


def build_judge(store: Store) -> Judge:
    """Return the judge whose reference are the training cases of a store."""
    reference = fit_typicality(store, store.select(split="train"))
    return Judge(store.table.settings.for_patient(), store.spec.arms, reference)


def simulated(
    config: Config, indices: Sequence[int], contrast: ScannerContrast | None = None
) -> Iterator[tuple[int, Upload]]:
    """Simulate the patients with these indices, on scanners of that contrast if one is given."""
    affine = grid_affine(config.simulation)
    for index in indices:
        subject = simulate_subject(config.simulation, index, contrast=contrast)
        yield index, upload_of(subject, affine)


def faulty(name: str, config: Config, indices: Sequence[int]) -> Iterator[tuple[int, Upload]]:
    """Return the patients for one fault; sessions are swapped where something changed."""
    if name != "swapped sessions":
        return simulated(config, indices)
    changed = (pair for pair in simulated(config, range(100 * len(indices))) if _changed(pair[1]))
    return islice(changed, len(indices))


def _changed(upload: Upload) -> bool:
    return bool((upload.images["w048/t2"] != upload.images["w000/t2"]).any())


def report(name: str, judged: Iterator[Typicality]) -> None:
    """Print the share of alarms among patients, with their standard error."""
    p = np.array([one.p_value for one in judged], np.float64)
    rate = float((p < LIMIT).mean())
    error = float(np.sqrt(rate * (1 - rate) / len(p)))
    print(f"| {name} | {len(p)} | {rate:.3f} (SE {error:.3f}) | {np.median(p):.4f} |", flush=True)


def report_real(judging: Judge, root: Path, store: Store) -> None:
    """Print the p-value and the most unusual features of real patients."""
    for subject in sorted(path.name for path in root.glob("sub-*")):
        for with_mask in (True, False):
            with TemporaryDirectory() as folder:
                bids = Path(folder) / "bids"
                copy_subject(root, bids, subject, brain_mask=with_mask)
                judged = judging.of_folder(bids, Path(folder) / "store.zarr")
            mask = "with" if with_mask else "without"
            print(f"{subject} {mask} brain mask: p = {judged.p_value} of {judged.ranked} ranked")
            for one in judged.unusual:
                words = in_words(one.column, one.value, one.low, one.high, visits=store.spec.visits)
                print(f"    {words.name}: {words.value}, in training {words.low} to {words.high}")
    print(f"({len(PATIENT_FEATURES)} features)\n", flush=True)


def copy_subject(root: Path, bids: Path, subject: str, *, brain_mask: bool) -> None:
    """Copy one subject of a BIDS folder, with or without its brain mask."""
    for source in root.rglob(f"*{subject}*"):
        path = source.relative_to(root)
        if source.is_dir() or (path.parts[:2] == ("derivatives", "brainmask") and not brain_mask):
            continue
        (bids / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, bids / path)
    rows = (root / "participants.tsv").read_text().splitlines()
    kept = [rows[0], *(row for row in rows[1:] if row.split("\t")[0] == subject)]
    (bids / "participants.tsv").write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    sys.exit(main())
