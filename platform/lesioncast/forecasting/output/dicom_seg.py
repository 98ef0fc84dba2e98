"""Turn a subject's probability maps into a DICOM SEG with one segment for each arm."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesioncast.forecasting.output.bids import ProbabilityMap
from storage.export.dicom_seg import Segment, Segmentation, binarise


def _described(sidecar: Mapping[str, Any]) -> str:
    """Return what a map is and how typical the patient is; older sidecars say the first alone."""
    return " ".join(sidecar[key] for key in ("Description", "Typicality") if key in sidecar)


def _segment_label(sidecar: Mapping[str, Any]) -> str:
    """Return a label of at most 64 characters, which DICOM allows."""
    return f"NET2 {sidecar['ForecastSession']} forecast, {sidecar['Arm']}"[:64]


def forecast_segmentation(
    maps: Sequence[ProbabilityMap], *, threshold: float | None = None
) -> Segmentation:
    """Return all maps of a subject as segments, described by their sidecars.

    The segments hold probabilities or, with a `threshold`, masks of the voxels at or above it.
    """
    segments = tuple(
        Segment(
            probability_map.image,
            _segment_label(probability_map.sidecar),
            _described(probability_map.sidecar),
        )
        for probability_map in maps
    )
    bundle = str(maps[0].sidecar["BundleDigest"])
    segmentation = Segmentation(segments, "Forecast of new lesions", bundle, forecast=True)
    return segmentation if threshold is None else binarise(segmentation, threshold)
