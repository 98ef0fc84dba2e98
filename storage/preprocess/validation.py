"""Checks of the files of a subject before they enter a store.

Each check raises a CaseError that names the subject and, if one is at fault, the session and file.
"""

from dataclasses import replace

import numpy as np

from storage.errors import CaseError, Exclusion
from storage.layout import SESSIONS
from storage.nifti.affine import max_corner_distance, voxel_sizes
from storage.nifti.io import NiftiGeometry, Volume
from storage.preprocess.label_schemes import KNOWN_SCHEMES, describe_unknown_scheme
from storage.settings import StoreSettings, TrialLayout
from storage.text_files import is_utf8_name, printable_name
from storage.trial.dataset import REQUIRED_SESSIONS, SourceFile, TrialSubject
from storage.trial.participants import parse_arm, subject_id

# Relative difference of spacings that counts as equal (0.1 mm in 10 cm): no resampling.
SPACING_TOLERANCE = 1e-3
# Degrees. Rounding and scanners stay far below; 12-parameter registrations do not.
SHEAR_TOLERANCE = 2.0
# Share of a slab's height and width that an image must cover: about half a brain.
MIN_IN_PLANE_COVERAGE = 0.25


def check_participant(subject: TrialSubject, arms: tuple[str, ...], *, layout: TrialLayout) -> None:
    """Require file names in UTF-8, a unique id and one row in the table with a known arm or n/a."""

    def exclusion(kind: str, reason: str) -> CaseError:
        return CaseError(Exclusion(subject.name, kind, reason))

    for source in subject.sources:
        if not is_utf8_name(str(source.path)):
            name = printable_name(source.path.name)
            reason = (
                f"expected file and folder names in UTF-8, got other bytes in the path of {name}"
            )
            raise CaseError(
                Exclusion(
                    subject.name,
                    "name not in UTF-8",
                    f"{reason}; rename them",
                    source.session,
                    printable_name(str(source.path)),
                )
            )
    if subject.name == subject_id(""):
        reason = f"expected a {layout.subject_column}, got none in a row of {layout.participants}"
        raise exclusion("no name", f"{reason}; fill it in or delete the row")
    if len(subject.labels) > 1:
        got = " and ".join(map(repr, subject.labels))
        reason = f"expected names that differ in letters and digits, got files of {got}"
        raise exclusion("one name for several", f"{reason}; rename one")
    if len(subject.rows) != 1:
        reason = f"expected one row in {layout.participants}, got {len(subject.rows)}"
        raise exclusion("not listed once", f"{reason}; list it once")
    arm = parse_arm(subject.rows[0], layout, arms)
    if arm is not None and arm not in arms:
        reason = f"expected {layout.arm_column} in ({', '.join(arms)}) or n/a, got {arm!r}"
        raise exclusion("unknown arm", f"{reason}; correct it or add the arm")


def check_sessions(subject: TrialSubject, layout: TrialLayout) -> None:
    """Require a FLAIR in each session on which a forecast is conditioned."""
    for session in REQUIRED_SESSIONS:
        if subject.source(session, "flair") is None:
            label = layout.visits.label
            got = [label(s) for s in SESSIONS if subject.source(s, "flair") is not None]
            reason = f"expected a FLAIR at {label(session)}, got FLAIR at "
            reason += ", ".join(got) or "no session"
            raise CaseError(Exclusion(subject.name, "missing session", reason, session))


def check_image(volume: Volume, source: SourceFile) -> Volume:
    """Require an image that is finite and not constant."""
    check_finite(volume, source)
    if volume.data.min() == volume.data.max():
        reason = f"expected an image, got {volume.data.flat[0]} in every voxel; export it again"
        raise source.rejection("constant image", reason)
    return volume


def check_finite(volume: Volume, source: SourceFile) -> None:
    """Require that no voxel is NaN or infinite."""
    if volume.data.dtype.kind != "f":
        return
    bad = volume.data.size - np.count_nonzero(np.isfinite(volume.data))
    if bad:
        reason = f"expected finite voxels, got {bad} that are NaN or infinite; export it again"
        raise source.rejection("not finite", reason)


def check_mask(volume: Volume, source: SourceFile, *, probabilities: bool) -> Volume:
    """Return a mask of zeros and ones.

    With `probabilities`, values between 0 and 1 are accepted and become 1 from 0.5 on.
    """
    check_finite(volume, source)
    odd = volume.data[(volume.data != 0) & (volume.data != 1)]
    if odd.size:
        shares = bool(odd.min() > 0 and odd.max() < 1)
        if not (shares and probabilities):
            reason = f"expected a mask of 0 and 1, got {odd.size} voxels like {odd.flat[0]}"
            do = "threshold it, or set store.probability_masks" if shares else "threshold it"
            raise source.rejection("not binary", f"{reason}; {do}")
    mask = (volume.data >= 0.5).astype(np.uint8)
    if mask.all():
        raise source.rejection("mask of everything", "expected a mask, got 1 everywhere; redo it")
    return replace(volume, data=mask)


def check_brain_mask(volume: Volume, source: SourceFile, *, probabilities: bool) -> Volume:
    """Return a brain mask, which must not be empty."""
    mask = check_mask(volume, source, probabilities=probabilities)
    if not mask.data.any():
        raise source.rejection("empty brain mask", "expected a brain, got 0 everywhere; redo it")
    return mask


def check_labels(volume: Volume, source: SourceFile) -> Volume:
    """Return a parcellation as int16 with FreeSurfer ids of a known scheme."""
    check_finite(volume, source)
    limits = np.iinfo(np.int16)
    fits = (volume.data >= limits.min) & (volume.data <= limits.max)
    odd = volume.data[~fits | (volume.data != np.floor(volume.data))]
    if odd.size:
        reason = f"expected FreeSurfer ids, got {odd.size} voxels like {odd.flat[0]}"
        raise source.rejection("not labels", f"{reason}; export it again")
    if not volume.data.any():
        raise source.rejection("empty parcellation", "expected labels, got 0 everywhere; redo it")
    labels = volume.data.astype(np.int16)
    if (problem := describe_unknown_scheme(labels)) is not None:
        reason = f"expected white matter and cortex of both sides in ids of {KNOWN_SCHEMES}"
        raise source.rejection(
            "unknown labels", f"{reason}, got {problem}; use such a map, or none at all"
        )
    return replace(volume, data=labels)


def check_obliquity(header: NiftiGeometry, source: SourceFile, *, limit: float) -> None:
    """Require that each axis lies within `limit` degrees of a body axis, with right angles between.

    The body axes are right-left, posterior-anterior and inferior-superior. A slab keeps the axes of
    its file, so the slab of a file that is rotated further would not be axial. From 45 degrees on
    it would be ambiguous which axis is which.
    """
    affine = header.canonical_affine[:3, :3]
    axes = affine / voxel_sizes(affine)
    tilt = np.degrees(np.arccos(np.clip(np.diag(axes), -1, 1))).max()
    if tilt > limit:
        reason = f"expected axes within {limit:g} degrees of the body's, got {tilt:.1f}"
        raise source.rejection("too oblique", f"{reason}; reslice it or raise store.max_obliquity")
    shear = 90 - np.degrees(np.arccos(np.clip(axes.T @ axes, -1, 1)))
    skew = np.abs(shear[np.triu_indices(3, 1)]).max()
    if skew > SHEAR_TOLERANCE:
        reason = f"expected axes at right angles, got {skew:.1f} degrees off"
        raise source.rejection("sheared", f"{reason}; reslice it with a rigid transform")


def check_same_grid(
    header: NiftiGeometry, source: SourceFile, *, grid: NiftiGeometry, tolerance: float
) -> None:
    """Require the grid of the current FLAIR, within `tolerance` mm at every corner."""
    if header.canonical_shape != grid.canonical_shape:
        reason = (
            f"expected the shape of the current FLAIR, (s, h, w) = {grid.canonical_shape}, "
            f"got {header.canonical_shape}; register and resample the session to the current one"
        )
        raise source.rejection("wrong shape", reason)
    s, h, w = grid.canonical_shape
    distance = max_corner_distance(header.canonical_affine, grid.canonical_affine, shape=(w, h, s))
    if distance > tolerance:
        reason = (
            f"expected the affine of the current FLAIR within {tolerance} mm, "
            f"got corners {distance:.2f} mm away; register and resample the file to it"
        )
        raise source.rejection("affines disagree", reason)


def check_field_of_view(
    header: NiftiGeometry, source: SourceFile, *, settings: StoreSettings
) -> None:
    """Require the store's spacing, unless resampling is allowed, and a large enough field."""
    if not settings.resample and not has_spacing(header, settings.spacing):
        got = ", ".join(f"{size:.4g}" for size in header.spacing)
        reason = f"expected (s, h, w) spacing {settings.spacing} mm, got ({got}) mm"
        raise source.rejection("wrong spacing", f"{reason}; resample it or set store.resample")
    # A resampled slab may extend past the last slice of the source, but must not be mostly
    # padding.
    min_coverage = (0.5 if settings.resample else 1.0, MIN_IN_PLANE_COVERAGE, MIN_IN_PLANE_COVERAGE)
    for axis, extent in enumerate(("from bottom to top", "from back to front", "across")):
        needed = settings.slab[axis] * settings.spacing[axis] * min_coverage[axis]
        covered = header.canonical_shape[axis] * header.spacing[axis]
        if covered < needed * (1 - SPACING_TOLERANCE):
            reason = f"expected {needed:g} mm or more {extent}, got {covered:.4g} mm"
            kind = "field too small" if axis else "too few slices"
            raise source.rejection(kind, f"{reason}; a smaller slab needs a smaller store.slab")


def has_spacing(header: NiftiGeometry, spacing: tuple[float, float, float]) -> bool:
    """Return whether the voxels of a file have that size, (s, h, w) in mm."""
    return all(
        same_spacing(own, target) for own, target in zip(header.spacing, spacing, strict=True)
    )


def same_spacing(own: float, target: float) -> bool:
    """Return whether two voxel sizes are equal up to rounding."""
    return abs(own / target - 1) < SPACING_TOLERANCE
