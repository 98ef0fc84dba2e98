"""Lesions found and missed, by the rule of the MSSEG-2 challenge.

Commowick et al. 2018 (Scientific Reports 8:13650) define the rule, and its tool
animaSegPerfAnalyzer scored MSSEG-2 (2021) with it, at the thresholds below. A lesion counts as
detected where more than ALPHA of its volume is covered, and where the lesions that cover it, taken
from the largest overlap on until they make up GAMMA of what is covered, each have no more than BETA
of their volume outside all lesions of the other mask. The same rule, read the other way round,
says which drawn lesions are right. Lesions of no more than LEAST_MM3 are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.imaging.lesions import Mask, components

ALPHA = 0.10
BETA = 0.70
GAMMA = 0.65
MIN_LESION_MM3 = 3.0

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Detection:
    """Lesions of one drawn mask beside those observed.

    `observed` lesions, of which `found`; `drawn` lesions, of which `right`, and their volume in
    mm3, which with `drawn` is what MSSEG-2 reports where nothing was observed.
    """

    observed: int
    detected: int
    predicted: int
    correct: int
    predicted_mm3: float

    @property
    def f1(self) -> float | None:
        """2 PPV S / (PPV + S) of sensitivity S and precision PPV over lesions.

        0 where lesions were observed and none is right; None where none was observed, for which
        the challenge has other figures.
        """
        if not self.observed:
            return None
        if not self.detected or not self.correct:
            return 0.0
        sensitivity, precision = self.detected / self.observed, self.correct / self.predicted
        return 2 * precision * sensitivity / (precision + sensitivity)


def match_lesions(drawn: Mask, observed: Mask, spacing: Sequence[float]) -> Detection:
    """Scores a `drawn` mask [s, h, w] against the `observed` one, voxels of `spacing` mm."""
    overlap = label_overlaps(
        _label_large_lesions(observed, spacing), _label_large_lesions(drawn, spacing)
    )
    voxel = float(np.prod(spacing))
    return Detection(
        observed=overlap.shape[0] - 1,
        detected=count_detected(overlap),
        predicted=overlap.shape[1] - 1,
        correct=count_detected(overlap.T),
        predicted_mm3=float(overlap[:, 1:].sum()) * voxel,
    )


def _label_large_lesions(mask: Mask, spacing: Sequence[float]) -> npt.NDArray[np.int32]:
    """Labels of the lesions that are large enough, 1 to n without gaps."""
    labels, number = components(mask)
    voxels = np.bincount(labels.ravel(), minlength=number + 1)
    kept = voxels * np.prod(spacing) > MIN_LESION_MM3
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]


def label_overlaps(rows: npt.NDArray[np.int32], columns: npt.NDArray[np.int32]) -> Ints:
    """Voxels shared by each pair of labels, [row label, column label]; 0 is the background."""
    width = int(columns.max()) + 1
    height = int(rows.max()) + 1
    pairs = rows.ravel().astype(np.int64) * width + columns.ravel()
    return np.bincount(pairs, minlength=height * width).reshape(height, width).astype(np.int64)


def count_detected(overlap: Ints) -> int:
    """How many of the lesions in the rows of `overlap` those in its columns detect."""
    return sum(_is_detected(overlap, row) for row in range(1, overlap.shape[0]))


def _is_detected(overlap: Ints, row: int) -> bool:
    covers = overlap[row, 1:]
    covered = int(covers.sum())
    if covered <= ALPHA * overlap[row].sum():
        return False
    outside = overlap[0, 1:] / overlap[:, 1:].sum(axis=0)
    share = 0.0
    for column in np.argsort(-covers, kind="stable"):
        if outside[column] > BETA:
            return False
        share += covers[column] / covered
        if share >= GAMMA:
            break
    return True
