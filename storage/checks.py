"""What a file must be to enter a store; each check raises a CaseError that names the file."""

import numpy as np
import numpy.typing as npt

from storage.bids import REQUIRED, UNKNOWN, Source, Subject
from storage.errors import CaseError, Refusal
from storage.layout import SESSIONS
from storage.nifti import Volume
from storage.settings import StoreSettings

# A spacing this close to the store's (0.1 mm in 10 cm) is the store's: no resampling.
SPACING_TOLERANCE = 1e-3


def check_participant(subject: Subject, arms: tuple[str, ...], *, arm_column: str) -> None:
    """The subject has one row in participants.tsv, with an arm that is known or n/a."""
    if len(subject.rows) != 1:
        reason = f"expected one row in participants.tsv, got {len(subject.rows)}; list it once"
        raise CaseError(Refusal(subject.name, "not listed once", reason))
    arm = subject.rows[0].get(arm_column, UNKNOWN[0])
    if arm not in arms and arm not in UNKNOWN:
        reason = f"expected {arm_column} in ({', '.join(arms)}) or n/a, got {arm!r}"
        raise CaseError(
            Refusal(subject.name, "unknown arm", f"{reason}; correct it or add the arm")
        )


def check_sessions(subject: Subject) -> None:
    """The subject has a FLAIR in each session that conditions a forecast."""
    for session in REQUIRED:
        if subject.source(session, "flair") is None:
            got = [s for s in SESSIONS if subject.source(s, "flair") is not None]
            reason = f"expected a FLAIR at {session}, got FLAIR at {', '.join(got) or 'no session'}"
            raise CaseError(Refusal(subject.name, "missing session", reason, session))


def check_image(volume: Volume, source: Source) -> None:
    """An image is finite and not constant."""
    check_finite(volume, source)
    if volume.data.min() == volume.data.max():
        reason = f"expected an image, got {volume.data.flat[0]} in every voxel; export it again"
        raise source.refuse("constant image", reason)


def check_finite(volume: Volume, source: Source) -> None:
    """No voxel is NaN or infinite."""
    if volume.data.dtype.kind != "f":
        return
    bad = volume.data.size - np.count_nonzero(np.isfinite(volume.data))
    if bad:
        reason = f"expected finite voxels, got {bad} that are NaN or infinite; export it again"
        raise source.refuse("not finite", reason)


def check_binary(volume: Volume, source: Source) -> None:
    """A mask holds zeros and ones only."""
    check_finite(volume, source)
    odd = volume.data[(volume.data != 0) & (volume.data != 1)]
    if odd.size:
        reason = f"expected a mask of 0 and 1, got {odd.size} voxels like {odd.flat[0]}"
        raise source.refuse("not binary", f"{reason}; threshold it")


def check_labels(volume: Volume, source: Source) -> None:
    """A parcellation holds whole numbers that fit 16 bits."""
    check_finite(volume, source)
    limits = np.iinfo(np.int16)
    fits = (volume.data >= limits.min) & (volume.data <= limits.max)
    odd = volume.data[~fits | (volume.data != np.floor(volume.data))]
    if odd.size:
        reason = (
            f"expected FreeSurfer ids, got {odd.size} voxels like {odd.flat[0]}; export it again"
        )
        raise source.refuse("not labels", reason)


def check_same_grid(volume: Volume, source: Source, *, grid: Volume, tolerance: float) -> None:
    """A file lies on the grid of the subject's w048 FLAIR, to `tolerance` mm at every corner."""
    if volume.data.shape != grid.data.shape:
        reason = (
            f"expected the shape of the w048 FLAIR, (s, h, w) = {grid.data.shape}, "
            f"got {volume.data.shape}; register and resample the session to w048"
        )
        raise source.refuse("wrong shape", reason)
    apart = _largest_distance(volume.affine, grid.affine, shape=grid.data.shape)
    if apart > tolerance:
        reason = (
            f"expected the affine of the w048 FLAIR within {tolerance} mm, "
            f"got corners {apart:.2f} mm away; register and resample the file to w048"
        )
        raise source.refuse("affines disagree", reason)


def _largest_distance(
    one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], *, shape: tuple[int, ...]
) -> float:
    s, h, w = shape
    corners = np.array([(i, j, k, 1) for i in (0, w - 1) for j in (0, h - 1) for k in (0, s - 1)])
    return float(np.linalg.norm(corners @ (one - other).T, axis=1).max())


def check_field(volume: Volume, source: Source, *, settings: StoreSettings) -> None:
    """A volume has the store's spacing, or may be resampled to it, and enough slices for a slab."""
    if not settings.resample and not has_spacing(volume, settings.spacing):
        got = ", ".join(f"{size:.4g}" for size in volume.spacing)
        reason = f"expected (s, h, w) spacing {settings.spacing} mm, got ({got}) mm"
        raise source.refuse("wrong spacing", f"{reason}; resample it or set store.resample")
    # A resampled slab may reach past the source's last slice, but must not be mostly padding.
    needed = settings.slab[0] * settings.spacing[0] * (0.5 if settings.resample else 1.0)
    covered = volume.data.shape[0] * volume.spacing[0]
    if covered < needed * (1 - SPACING_TOLERANCE):
        reason = f"expected {needed:g} mm or more from bottom to top, got {covered:.4g} mm"
        raise source.refuse(
            "too few slices", f"{reason}; a thinner slab needs a smaller store.slab"
        )


def has_spacing(volume: Volume, spacing: tuple[float, float, float]) -> bool:
    """Whether the voxels of `volume` have that size, (s, h, w) in mm."""
    return all(
        same_spacing(own, wanted) for own, wanted in zip(volume.spacing, spacing, strict=True)
    )


def same_spacing(own: float, wanted: float) -> bool:
    """Whether two voxel sizes are one but for rounding."""
    return abs(own / wanted - 1) < SPACING_TOLERANCE
