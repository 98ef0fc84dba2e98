"""How the drawn masks lie beside the observed ones, over all cases."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.metrics.mask_comparison import MaskComparison
from lesioncast.evaluation.metrics.scores import Bootstrap, estimate_mean, estimate_ratio

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Record = dict[str, Any]

MAX_RELIABILITY_ROWS = 10  # rows of the reliability of voxels above 0


def f1_of_samples(spatial: MaskComparison) -> float:
    """Mean F1 over the samples of a case; NaN where no lesion was observed."""
    return float(np.mean([np.nan if one.f1 is None else one.f1 for one in spatial.each]))


def spatial_agreement(
    found: Sequence[MaskComparison], groups: Iterator[tuple[str, Bools]], *, bootstrap: Bootstrap
) -> Record:
    """Detection, energy distance and diversity in every group, reliability of voxels over all."""
    record: Record = {"groups": {}}
    for name, member in groups:
        chosen = [spatial for spatial, here in zip(found, member, strict=True) if here]
        record["groups"][name] = _group(chosen, bootstrap.weights(len(chosen)))
    return record | {"voxels": voxel_record(found, bootstrap.weights(len(found)))}


def _group(found: Sequence[MaskComparison], weights: Floats) -> Record:
    """`f1` is over the cases with an observed lesion, `empty` about the others, as in MSSEG-2.

    `energy_of_empty` is the energy distance of a forecast that never draws a lesion.
    """

    def mean(values: Sequence[float]) -> Record:
        return estimate_mean(np.array(values, np.float64), weights).as_dict()

    observed = np.array([spatial.majority.observed > 0 for spatial in found], bool)
    majority = [spatial.majority.f1 for spatial in found]
    return {
        "cases": len(found),
        "with_lesions": int(observed.sum()),
        "f1_sample": mean([f1_of_samples(spatial) for spatial in found]),
        "f1_majority": mean([np.nan if f1 is None else f1 for f1 in majority]),
        "empty": _empty(
            [s for s, here in zip(found, observed, strict=True) if not here], weights[:, ~observed]
        ),
        "energy": mean([spatial.energy for spatial in found]),
        "energy_of_empty": mean([2.0 * bool(s.lesion_voxels.sum()) for s in found]),
        "diversity": mean([spatial.diversity for spatial in found]),
    }


def _empty(found: Sequence[MaskComparison], weights: Floats) -> Record:
    """Lesions and mm3 that a sample draws, and the share of samples without, where none is true."""
    drawn = np.array([[one.drawn for one in spatial.each] for spatial in found], np.float64)
    volume = np.array([[one.volume for one in spatial.each] for spatial in found], np.float64)
    if not found:
        return {"cases": 0, "lesions": None, "volume": None, "silent": None}
    return {
        "cases": len(found),
        "lesions": estimate_mean(drawn.mean(axis=1), weights).as_dict(),
        "volume": estimate_mean(volume.mean(axis=1), weights).as_dict(),
        "silent": estimate_mean((drawn == 0).mean(axis=1), weights).as_dict(),
    }


def voxel_record(found: Sequence[MaskComparison], weights: Floats) -> Record:
    """Observed share of lesion among voxels of one forecast probability, and their Brier score.

    That score is the fair one, what the share of endless samples would have on average (Ferro
    2014). Every voxel of every slab counts. Probabilities above 0 fall into at most STEPS rows.
    """
    voxels = np.array([spatial.voxels for spatial in found], np.float64)  # [n, k + 1]
    lesions = np.array([spatial.lesion_voxels for spatial in found], np.float64)
    samples = voxels.shape[1] - 1
    held = np.arange(samples + 1)
    chance = held / samples
    row_of = np.ceil(held * min(MAX_RELIABILITY_ROWS, samples) / samples - 1e-9).astype(int)
    rows = []
    for row in np.unique(row_of):
        here = row_of == row
        total = voxels[:, here].sum()
        share = estimate_ratio(lesions[:, here].sum(axis=1), voxels[:, here].sum(axis=1), weights)
        rows.append(
            {
                "probability": float(voxels[:, here].sum(axis=0) @ chance[here] / total)
                if total
                else None,
                "voxels": int(total),
                "lesion_voxels": int(lesions[:, here].sum()),
                "share": share.as_dict(),
            }
        )
    luck = chance * (1 - chance) / (samples - 1)
    squared = voxels @ (chance**2 - luck) - 2 * lesions @ chance + lesions.sum(axis=1)
    return {
        "rows": rows,
        "brier": estimate_ratio(squared, voxels.sum(axis=1), weights).as_dict(),
        "lesion_share": float(lesions.sum() / voxels.sum()),
    }
