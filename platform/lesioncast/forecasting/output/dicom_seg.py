"""A subject's forecast as the segments of a DICOM SEG, one for each arm."""

from collections.abc import Sequence

from lesioncast.forecasting.output.bids import ProbabilityMap
from storage.export.dicom_seg import Segment, Segmentation, binarise


def forecast_segmentation(
    maps: Sequence[ProbabilityMap], *, threshold: float | None = None
) -> Segmentation:
    """All maps of a subject in one file; what each says of itself comes from its sidecar.

    With a `threshold` masks of the voxels at or above that probability.
    """
    segments = tuple(
        Segment(
            each.image,
            f"NET2 w096 forecast, {each.sidecar['Arm']}"[:64],
            str(each.sidecar["Description"]),
        )
        for each in maps
    )
    bundle = str(maps[0].sidecar["BundleDigest"])
    made = Segmentation(segments, "Forecast of new lesions", bundle, forecast=True)
    return made if threshold is None else binarise(made, threshold)
