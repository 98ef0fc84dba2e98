"""Write a DICOM series with the geometry of a NIfTI grid in any orientation."""

from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import numpy.typing as npt
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.spatial.transform import Rotation

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Scan:
    """Grid of a scanner: (slice, row, column) of `shape` and `spacing` mm, rotated by `angles`.

    `axes` are the directions of (slice, row, column) before the rotation, for example SPL for usual
    axial images.
    """

    shape: tuple[int, int, int] = (6, 10, 8)
    spacing: tuple[float, float, float] = (3.0, 1.2, 1.0)
    axes: str = "SPL"
    angles: tuple[float, float, float] = (12.0, -7.0, 21.0)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Return the affine from (slice, row, column) to RAS+ mm."""
        unit = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
        columns = np.zeros((3, 3))
        for axis, letter in enumerate(self.axes):
            columns[unit[letter], axis] = 1.0 if letter in "RAS" else -1.0
        affine = np.eye(4)
        turn = Rotation.from_euler("xyz", self.angles, degrees=True).as_matrix()
        affine[:3, :3] = turn @ columns * self.spacing
        affine[:3, 3] = (31.5, -12.25, 8.0)
        return affine


def write_series(
    folder: Path,
    affine: npt.NDArray[np.float64],
    shape: tuple[int, ...],
    *,
    description: str = "FLAIR",
) -> Path:
    """Write one file per slice under shuffled names; `affine` is that of a `Scan`."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = {name: generate_uid() for name in ("study", "series", "frame")}
    slices, rows, columns = shape
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    affine = LPS @ affine
    for k in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = uids["study"], uids["series"]
        image.FrameOfReferenceUID = uids["frame"]
        image.PatientID, image.PatientName = "P1", "Test^Patient"
        image.PatientBirthDate = image.PatientSex = image.StudyID = image.AccessionNumber = ""
        image.StudyDate, image.StudyTime = "20260101", "120000"
        image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
        image.Modality, image.SeriesDescription = "MR", description
        image.SeriesNumber, image.InstanceNumber = 3, 1 + (7 * k) % slices
        image.Rows, image.Columns = rows, columns
        image.PixelSpacing = [float(x) for x in spacing[1:]]
        image.SliceThickness = float(spacing[0])
        cosines = affine[:3, :3] / spacing
        image.ImageOrientationPatient = [f"{x:.12g}" for x in (*cosines[:, 2], *cosines[:, 1])]
        image.ImagePositionPatient = [f"{x:.10g}" for x in (affine @ (k, 0, 0, 1))[:3]]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.PixelData = np.full((rows, columns), 100 + k, np.uint16).tobytes()
        image.save_as(folder / f"{(5 * k) % 97:03d}.dcm", enforce_file_format=True)
    return folder


def values_at(path: Path, image: nib.Nifti1Image, *, segment: int) -> npt.NDArray:
    """Return the values of a SEG at the voxels of an image, looked up by patient coordinates."""
    volume = hd.seg.segread(path).get_volume(segment_numbers=[segment], rescale_fractional=True)
    frames = volume.array.reshape(volume.array.shape[:3])
    indices = np.indices(image.shape).reshape(3, -1)
    patient = LPS @ image.affine @ np.vstack([indices, np.ones(indices.shape[1])])
    position = (np.linalg.inv(volume.affine) @ patient)[:3]
    np.testing.assert_allclose(position, np.rint(position), atol=0.05)
    s, r, c = np.rint(position).astype(int)
    outside = (s < 0) | (s >= frames.shape[0])  # empty frames at the ends are not stored
    values = frames[np.where(outside, 0, s), r, c]
    return np.where(outside, 0, values).reshape(image.shape)
