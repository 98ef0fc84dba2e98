"""A subject's forecast as the segments of a DICOM SEG, one for each arm."""

from collections.abc import Sequence

from lesioncast.forecasting.derivative import Map
from storage.segmentation import Segment, Segmentation


def forecast_segmentation(maps: Sequence[Map]) -> Segmentation:
    """All maps of a subject in one file; what each says of itself comes from its sidecar."""
    segments = tuple(
        Segment(
            each.image,
            f"NET2 w096 forecast, {each.sidecar['Arm']}"[:64],
            str(each.sidecar["Description"]),
        )
        for each in maps
    )
    bundle = str(maps[0].sidecar["BundleDigest"])
    return Segmentation(segments, "Forecast of new lesions", bundle, forecast=True)
