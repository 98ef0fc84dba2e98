"""Write masks and probability maps on a subject's grid as DICOM SEG."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from storage.atomic import atomic_write
from storage.digest import sha256_bytes
from storage.export.dicom_series import Series, header_errors_as_dicom_error, reorient_to_series
from storage.export.dicom_text import encode_like, with_utf8_text
from storage.export.export import BIDS_ENTITIES, has_channel, source_image
from storage.layout import MASKS
from storage.store.case_table import Case
from storage.store.store import Store
from storage.version import installed_version

MANUFACTURER = "lesioncast"
RESEARCH = "Research use only"
MAX_FRACTIONAL_VALUE = 255  # the stored value of probability 1
_SERIES_NUMBER = 9600


@dataclass(frozen=True)
class Segment:
    """A mask {0, 1} or probability map [0, 1] on the source grid."""

    image: nib.Nifti1Image
    #: Name in at most 64 characters.
    label: str
    #: What the segment is and what it is not.
    description: str


@dataclass(frozen=True)
class Segmentation:
    """Segments of one subject that go into one file."""

    segments: tuple[Segment, ...]
    title: str
    #: Origin in at most 64 characters: the digest of the bundle for a forecast, otherwise that of
    #: the case.
    version: str
    #: Whether a model made the segments; otherwise they are masks of the trial.
    forecast: bool

    @property
    def fractional(self) -> bool:
        """Return whether any segment holds probabilities."""
        return any(segment.image.get_data_dtype().kind == "f" for segment in self.segments)


def binarise(segmentation: Segmentation, threshold: float) -> Segmentation:
    """Return a segmentation with masks of the voxels at or above a probability."""
    segments = tuple(
        Segment(
            nib.Nifti1Image(
                (np.asarray(segment.image.dataobj) >= threshold).astype(np.uint8),
                segment.image.affine,
            ),
            segment.label,
            f"Voxels at {threshold:g} or more of: {segment.description}",
        )
        for segment in segmentation.segments
    )
    return replace(segmentation, segments=segments)


def case_segmentation(store: Store, case: Case, names: Sequence[str]) -> Segmentation:
    """Return those masks among `names` that a case has, as drawn in its trial; perhaps none."""
    arrays = store.read(case.index)
    masks = [name for name in names if name.split("/")[1] in MASKS and has_channel(case, name)]
    segments = tuple(
        Segment(
            source_image(arrays, case, name),
            name.upper().replace("/", " "),
            f"{BIDS_ENTITIES[name.split('/')[1]].sidecar['Description']} As the trial gives them.",
        )
        for name in masks
    )
    return Segmentation(segments, "Lesion masks", case.digest, forecast=False)


def write_segmentation(segmentation: Segmentation, series: Series, path: Path) -> None:
    """Write a SEG on the images of `series`, binary unless a segment holds probabilities.

    Probabilities are stored in steps of 1 / 255. Every segment has a frame, because viewers wait
    forever for that of a segment without one. Text is in the character sets of the series. Equal
    inputs give equal identifiers. Raises DicomError if an image is on another grid than the series,
    or if the headers of the series lack attributes that a SEG must repeat.
    """
    frames = np.stack(
        [reorient_to_series(segment.image, series) for segment in segmentation.segments], axis=-1
    )
    voxels = frames.astype(np.float32 if segmentation.fractional else np.uint8)
    with header_errors_as_dicom_error(series.folder):
        seg = _build_seg(segmentation, series, voxels, name=path.name)
        content = encode_like(seg, series.images[0])
    atomic_write(path, content)


def _planes_to_write(voxels: npt.NDArray[Any], *, fractional: bool) -> tuple[slice, bool]:
    """Return the planes to write, and whether a segment's empty frames among them may be left out.

    `voxels` are [slice, row, column, segment]. If a segment is empty, all segments get a frame of
    each plane that any of them needs, and of the middle one if none does.
    """
    # A probability below half a step is stored as 0.
    stored = np.rint(voxels * MAX_FRACTIONAL_VALUE) if fractional else voxels
    used: npt.NDArray[np.bool_] = np.any(stored, axis=(1, 2))
    if used.any(axis=0).all():
        return slice(None), True
    planes = np.flatnonzero(used.any(axis=1))
    if not planes.size:
        planes = np.array([len(voxels) // 2])
    return slice(int(planes[0]), int(planes[-1]) + 1), False


def _build_seg(
    segmentation: Segmentation, series: Series, voxels: npt.NDArray[Any], *, name: str
) -> hd.seg.Segmentation:
    fractional = segmentation.fractional
    planes, omit_empty_frames = _planes_to_write(voxels, fractional=fractional)
    first, *others = series.images[planes]
    key = [series.images[0].SeriesInstanceUID, segmentation.version, segmentation.title, name]
    return hd.seg.Segmentation(
        source_images=[with_utf8_text(first), *others],
        pixel_array=voxels[planes],
        omit_empty_frames=omit_empty_frames,
        segmentation_type="FRACTIONAL" if fractional else "BINARY",
        segment_descriptions=[
            _describe(number, segment, segmentation, key=key)
            for number, segment in enumerate(segmentation.segments, start=1)
        ],
        series_instance_uid=generate_uid(entropy_srcs=[*key, "series"]),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(entropy_srcs=[*key, sha256_bytes(voxels.tobytes())]),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=installed_version(),
        device_serial_number=segmentation.version,
        fractional_type="PROBABILITY",
        max_fractional_value=MAX_FRACTIONAL_VALUE,
        content_label="LESIONS",
        content_description=RESEARCH,
        content_creator_name=f"{MANUFACTURER}^",
        series_description=f"{segmentation.title} ({RESEARCH.lower()})",
    )


def _describe(
    number: int, segment: Segment, segmentation: Segmentation, *, key: list[str]
) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC" if segmentation.forecast else "MANUAL",
        algorithm_identification=_algorithm(segmentation) if segmentation.forecast else None,
        tracking_uid=generate_uid(entropy_srcs=[*key, segment.label]),
        tracking_id=segment.label,
        anatomic_regions=[codes.SCT.Brain],
    )
    # The constructor takes no description. How a trial drew its masks is unknown, so the text
    # says only whose they are.
    description.SegmentDescription = f"{segment.description} {RESEARCH}; not a medical device."
    return description


def _algorithm(segmentation: Segmentation) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=MANUFACTURER, family=codes.DCM.ArtificialIntelligence, version=segmentation.version
    )
