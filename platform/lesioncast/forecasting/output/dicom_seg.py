"""Turn a subject's probability maps into a DICOM SEG with one segment for each arm."""

from collections.abc import Sequence

from lesioncast.forecasting.output.bids import ProbabilityMap
from lesioncast.imaging.channels import OUTCOME
from storage.export.dicom_seg import Segment, Segmentation, binarise


def forecast_segmentation(
    maps: Sequence[ProbabilityMap], *, threshold: float | None = None
) -> Segmentation:
    """Return all maps of a subject as segments, described by their sidecars.

    The segments hold probabilities or, with a `threshold`, masks of the voxels at or above it.
    """
    segments = tuple(
        Segment(
            probability_map.image,
            f"NET2 {OUTCOME} forecast, {probability_map.sidecar['Arm']}"[:64],
            str(probability_map.sidecar["Description"]),
        )
        for probability_map in maps
    )
    bundle = str(maps[0].sidecar["BundleDigest"])
    segmentation = Segmentation(segments, "Forecast of new lesions", bundle, forecast=True)
    return segmentation if threshold is None else binarise(segmentation, threshold)
